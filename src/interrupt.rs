//! Ctrl-C and signals. The first Ctrl-C asks resumable work to stop at its next checkpoint, the second ends the process. SIGTERM does
//! the same as the first, and ends the process after a grace period. SIGHUP is ignored.

use std::{
    process,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use crate::{Error, Result, distributed::Comm};

/// Whether a stop was requested.
static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Number of [`InterruptGuard`]s in use.
static ACTIVE_GUARDS: AtomicUsize = AtomicUsize::new(0);

/// Held by resumable work that checks [`is_requested`] regularly.
#[derive(Debug)]
#[must_use = "the guard is active until it is dropped"]
pub struct InterruptGuard(());

impl InterruptGuard {
    /// Until the guard is dropped, the first Ctrl-C only requests a stop.
    pub fn begin() -> Self {
        ACTIVE_GUARDS.fetch_add(1, Ordering::SeqCst);
        Self(())
    }
}

impl Drop for InterruptGuard {
    fn drop(&mut self) {
        ACTIVE_GUARDS.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Whether a stop was requested.
pub fn is_requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}

/// Returns an error if a stop was requested, for long operations inside resumable work. With several processes it does nothing: they
/// stop together in [`check_all_processes`].
pub(crate) fn check(comm: Comm) -> Result<()> {
    if comm.world_size() > 1 {
        return Ok(());
    }
    check_all_processes(comm)
}

/// Returns an error if a stop was requested in any process. All processes must call it.
pub(crate) fn check_all_processes(comm: Comm) -> Result<()> {
    if comm.any(is_requested()) {
        return Err(Error::Interrupted {
            hint: "repeat the same command".into(),
        });
    }
    Ok(())
}

/// Installs the signal handlers. Ctrl-C and SIGTERM end the process with code 130: at once, or, while an [`InterruptGuard`] is held,
/// after requesting a stop and calling `on_request`.
///
/// A process manager kills a process soon after SIGTERM, so the process ends itself after nine seconds. Its files are always complete.
pub fn install_handler(on_request: impl Fn() + Send + Sync + 'static) {
    let on_request = std::sync::Arc::new(on_request);
    let on_interrupt = std::sync::Arc::clone(&on_request);
    // Fails only if a handler is already installed, which does the same.
    let _ = ctrlc::set_handler(move || request_stop(&*on_interrupt));
    #[cfg(unix)]
    on_termination(move || request_stop(&*on_request));
}

/// Requests a stop. Ends the process if no guard is held or a stop was already requested.
fn request_stop(on_request: &dyn Fn()) {
    if ACTIVE_GUARDS.load(Ordering::SeqCst) == 0 || REQUESTED.swap(true, Ordering::SeqCst) {
        process::exit(130);
    }
    on_request();
}

/// Calls `handler` on SIGTERM and ends the process after the grace period; ignores SIGHUP.
#[cfg(unix)]
fn on_termination(handler: impl Fn() + Send + 'static) {
    use signal_hook::{
        consts::{SIGHUP, SIGTERM},
        iterator::Signals,
    };
    use std::{thread, time::Duration};

    const GRACE_PERIOD: Duration = Duration::from_secs(9);

    let Ok(mut signals) = Signals::new([SIGTERM, SIGHUP]) else {
        return;
    };
    thread::spawn(move || {
        for signal in signals.forever() {
            if signal == SIGTERM {
                thread::spawn(|| {
                    thread::sleep(GRACE_PERIOD);
                    process::exit(130);
                });
                handler();
            }
        }
    });
}
