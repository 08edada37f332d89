//! Ctrl-C: the first asks work that can be resumed to stop where it can be, the second stops it at once. A termination signal asks
//! as well, and stops it at once when it has not stopped in time. A terminal that goes away stops nothing.

use std::{
    process,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use crate::{Error, Result, distributed};

/// The user has asked to stop.
static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Pieces of work under way that look whether the user has asked.
static ACTIVE_GUARDS: AtomicUsize = AtomicUsize::new(0);

/// Held by work that calls [`is_requested`] often, and can be gone on with when it has stopped.
#[derive(Debug)]
#[must_use = "it counts while it is held"]
pub struct InterruptGuard(());

impl InterruptGuard {
    /// From here on until the value is dropped the first Ctrl-C only asks.
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

/// Whether the user has asked to stop.
pub fn is_requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}

/// An error once the user has asked to stop; for long work inside of [`InterruptGuard`] work, which knows how to go on. Work that several
/// processes share goes on to where all of them can stop.
pub(crate) fn check() -> Result<()> {
    if distributed::world_size() > 1 {
        return Ok(());
    }
    check_all_processes()
}

/// An error once the user has asked any of the processes to stop that share the work; all of them come here.
pub(crate) fn check_all_processes() -> Result<()> {
    if distributed::any(is_requested()) {
        return Err(Error::Interrupted {
            hint: "give the same command again".into(),
        });
    }
    Ok(())
}

/// From here on Ctrl-C and termination signals end the process with code 130: at once, but for [`InterruptGuard`] work, of
/// which they first only ask, after which `tell` is called.
///
/// Whoever terminates a process kills it a little later: what has not stopped ten seconds after such a signal is ended, its
/// files being whole at any moment.
pub fn install_handler(on_request: impl Fn() + Send + Sync + 'static) {
    let on_request = std::sync::Arc::new(on_request);
    let on_interrupt = std::sync::Arc::clone(&on_request);
    // Fails only where a handler is there already, which then does the same.
    let _ = ctrlc::set_handler(move || request_stop(&*on_interrupt));
    #[cfg(unix)]
    on_termination(move || request_stop(&*on_request));
}

/// Asks work to stop, or ends the process where there is none to ask or it was asked before.
fn request_stop(on_request: &dyn Fn()) {
    if ACTIVE_GUARDS.load(Ordering::SeqCst) == 0 || REQUESTED.swap(true, Ordering::SeqCst) {
        process::exit(130);
    }
    on_request();
}

/// Calls `ask` on SIGTERM and sees to it that the process ends in time; takes SIGHUP and does nothing.
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
