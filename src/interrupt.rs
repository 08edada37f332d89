//! Ctrl-C: the first asks work that can be resumed to stop where it can be, the second stops it at once.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

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

/// From here on Ctrl-C (or a termination signal) ends the process with code 130: at once, but for [`Resumable`] work, of
/// which it first only asks, after which `tell` is called.
pub fn listen(tell: impl Fn() + Send + 'static) {
    // Fails only where a handler is there already, which then does the same.
    let _ = ctrlc::set_handler(move || {
        if RESUMABLE.load(Ordering::SeqCst) == 0 || ASKED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        tell();
    });
}
