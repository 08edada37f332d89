//! Ctrl-C: the first asks work that can be resumed to stop where it can be, the second stops it at once. A termination signal asks
//! as well, and stops it at once when it has not stopped in time. A terminal that goes away stops nothing.

use std::{
    process,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use crate::{Error, Result, ranks};

/// The user has asked to stop.
static ASKED: AtomicBool = AtomicBool::new(false);

/// Pieces of work under way that look whether the user has asked.
static RESUMABLE: AtomicUsize = AtomicUsize::new(0);

/// Held by work that calls [`asked`] often, and can be gone on with when it has stopped.
#[derive(Debug)]
#[must_use = "it counts while it is held"]
pub struct Resumable(());

impl Resumable {
    /// From here on until the value is dropped the first Ctrl-C only asks.
    pub fn begin() -> Self {
        RESUMABLE.fetch_add(1, Ordering::SeqCst);
        Self(())
    }
}

impl Drop for Resumable {
    fn drop(&mut self) {
        RESUMABLE.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Whether the user has asked to stop.
pub fn asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}

/// An error once the user has asked to stop; for long work inside of [`Resumable`] work, which knows how to go on. Work that several
/// processes share goes on to where all of them can stop.
pub(crate) fn stop_if_asked() -> Result<()> {
    if ranks::size() > 1 {
        return Ok(());
    }
    stop_together()
}

/// An error once the user has asked any of the processes to stop that share the work; all of them come here.
pub(crate) fn stop_together() -> Result<()> {
    if ranks::any(asked()) {
        return Err(Error::Interrupted {
            hint: "give the same command again".into(),
        });
    }
    Ok(())
}

/// From here on Ctrl-C and termination signals end the process with code 130: at once, but for [`Resumable`] work, of
/// which they first only ask, after which `tell` is called.
///
/// Whoever terminates a process kills it a little later: what has not stopped ten seconds after such a signal is ended, its
/// files being whole at any moment.
pub fn listen(tell: impl Fn() + Send + Sync + 'static) {
    let tell = std::sync::Arc::new(tell);
    let told = std::sync::Arc::clone(&tell);
    // Fails only where a handler is there already, which then does the same.
    let _ = ctrlc::set_handler(move || ask(&*told));
    #[cfg(unix)]
    on_termination(move || ask(&*tell));
}

/// Asks work to stop, or ends the process where there is none to ask or it was asked before.
fn ask(tell: &dyn Fn()) {
    if RESUMABLE.load(Ordering::SeqCst) == 0 || ASKED.swap(true, Ordering::SeqCst) {
        process::exit(130);
    }
    tell();
}

/// Calls `ask` on SIGTERM and sees to it that the process ends in time; takes SIGHUP and does nothing.
#[cfg(unix)]
fn on_termination(ask: impl Fn() + Send + 'static) {
    use signal_hook::{
        consts::{SIGHUP, SIGTERM},
        iterator::Signals,
    };
    use std::{thread, time::Duration};

    const PATIENCE: Duration = Duration::from_secs(9);

    let Ok(mut signals) = Signals::new([SIGTERM, SIGHUP]) else {
        return;
    };
    thread::spawn(move || {
        for signal in signals.forever() {
            if signal == SIGTERM {
                thread::spawn(|| {
                    thread::sleep(PATIENCE);
                    process::exit(130);
                });
                ask();
            }
        }
    });
}
