//! Ctrl-C and signals. The first Ctrl-C asks resumable work to stop at its next checkpoint, the second ends the process. SIGTERM does
//! the same as the first, and ends the process after a grace period. SIGHUP is ignored.

use std::{
    path::PathBuf,
    process,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use crate::{Error, Result, distributed::Comm};

/// Whether a stop was requested.
static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Number of [`InterruptGuard`]s in use.
static ACTIVE_GUARDS: AtomicUsize = AtomicUsize::new(0);

/// What happens after the first Ctrl-C, in words.
static NOTICE: Mutex<String> = Mutex::new(String::new());

/// The directories of the runs in progress, in the order in which they are written.
static RUN_DIRS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

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
        set_notice(String::new());
        ACTIVE_GUARDS.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Sets what the first Ctrl-C tells the user while a guard is held; empty: nothing.
pub fn set_notice(text: String) {
    *NOTICE.lock().unwrap_or_else(PoisonError::into_inner) = text;
}

/// Sets the directories of the runs in progress, for the message of an interruption.
pub fn set_run_dirs(dirs: Vec<PathBuf>) {
    *RUN_DIRS.lock().unwrap_or_else(PoisonError::into_inner) = dirs;
}

/// The last message of an interrupted process: how the runs in progress are continued.
fn last_notice() -> String {
    let dirs = RUN_DIRS.lock().unwrap_or_else(PoisonError::into_inner);
    let is_unfinished =
        |dir: &&PathBuf| dir.join("config.toml").is_file() && !dir.join("result.json").is_file();
    let unfinished = dirs.iter().filter(is_unfinished);
    let commands = unfinished.map(|dir| format!("`unforget resume {}`", dir.display()));
    match &commands.collect::<Vec<_>>()[..] {
        [] => "interrupted".into(),
        commands => format!("interrupted: continue with {}", commands.join(", then ")),
    }
}

/// Whether a stop was requested.
pub fn is_requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}

/// Whether a stop was requested, which is then answered: work can begin again.
pub fn take_request() -> bool {
    REQUESTED.swap(false, Ordering::SeqCst)
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
/// after requesting a stop. Before that `on_request` is called with a message, and with whether the process ends.
///
/// A process manager kills a process soon after SIGTERM, so the process ends itself after nine seconds. Its files are always complete.
pub fn install_handler(on_request: impl Fn(&str, bool) + Send + Sync + 'static) {
    let on_request = std::sync::Arc::new(on_request);
    let on_interrupt = std::sync::Arc::clone(&on_request);
    // Fails only if a handler is already installed, which does the same.
    let _ = ctrlc::set_handler(move || request_stop(&*on_interrupt));
    #[cfg(unix)]
    {
        let on_orphaned = std::sync::Arc::clone(&on_request);
        on_termination(move || request_stop(&*on_request));
        watch_parent(move || request_stop(&*on_orphaned));
    }
}

/// Requests a stop. Ends the process if no guard is held or a stop was already requested.
fn request_stop(on_request: &dyn Fn(&str, bool)) {
    if ACTIVE_GUARDS.load(Ordering::SeqCst) == 0 || REQUESTED.swap(true, Ordering::SeqCst) {
        on_request(&last_notice(), true);
        process::exit(130);
    }
    let notice = NOTICE.lock().unwrap_or_else(PoisonError::into_inner);
    on_request(&notice, false);
}

/// Calls `handler` on SIGTERM and ends the process after the grace period; ignores SIGHUP.
#[cfg(unix)]
fn on_termination(handler: impl Fn() + Send + 'static) {
    use signal_hook::{
        consts::{SIGHUP, SIGTERM},
        iterator::Signals,
    };
    use std::thread;

    let Ok(mut signals) = Signals::new([SIGTERM, SIGHUP]) else {
        return;
    };
    thread::spawn(move || {
        for signal in signals.forever() {
            if signal == SIGTERM {
                end_after_grace_period();
                handler();
            }
        }
    });
}

/// Ends the process nine seconds from now, whatever it does.
#[cfg(unix)]
fn end_after_grace_period() {
    use std::{thread, time::Duration};

    thread::spawn(|| {
        thread::sleep(Duration::from_secs(9));
        process::exit(130);
    });
}

/// Where the caller named itself in `UNFORGET_PARENT`, by its process id: calls `handler` once it has died, as on SIGTERM.
#[cfg(unix)]
fn watch_parent(handler: impl Fn() + Send + 'static) {
    use std::{env, os::unix::process::parent_id, thread, time::Duration};

    let caller = env::var("UNFORGET_PARENT").ok();
    let Some(caller) = caller.and_then(|id| id.parse::<u32>().ok()) else {
        return;
    };
    thread::spawn(move || {
        // A process whose parent dies gets another one.
        while parent_id() == caller {
            thread::sleep(Duration::from_millis(500));
        }
        end_after_grace_period();
        handler();
    });
}
