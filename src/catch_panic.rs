//! Turns panics of libraries on broken files into errors.

use std::{cell::Cell, panic};

thread_local! {
    /// Whether this thread is inside [`catch_panic`].
    static CATCHING: Cell<bool> = const { Cell::new(false) };
}

/// The result of `work`, or `None` if it panics. The panic hook is the caller's and is called as for any panic;
/// [`hide_caught_panics`] keeps caught panics out of a program's output.
pub(crate) fn catch_panic<T>(work: impl FnOnce() -> T + panic::UnwindSafe) -> Option<T> {
    let outer = CATCHING.replace(true);
    let result = panic::catch_unwind(work).ok();
    CATCHING.set(outer);
    result
}

/// Installs a panic hook that ignores panics inside `catch_panic` and forwards all others to the current hook. For programs: a
/// library must not replace the hook of its process.
pub fn hide_caught_panics() {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if !CATCHING.get() {
            hook(info);
        }
    }));
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, Mutex},
        thread,
    };

    use super::*;

    #[test]
    fn a_panic_is_none_and_the_callers_hook_sees_it_and_those_of_other_threads() {
        let seen = Arc::new(Mutex::new(Vec::<&str>::new()));
        let record = Arc::clone(&seen);
        let hook = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            match info.payload().downcast_ref::<&str>() {
                Some(text) if text.starts_with("catch_panic test") => {
                    record.lock().expect("only pushed to").push(*text);
                }
                _ => hook(info),
            }
        }));
        assert_eq!(catch_panic(|| 7), Some(7));
        let caught = catch_panic(|| -> u32 {
            let other = thread::spawn(|| panic!("catch_panic test: another thread"));
            assert!(other.join().is_err());
            panic!("catch_panic test: this thread")
        });
        assert_eq!(caught, None);
        assert_eq!(catch_panic(|| 8), Some(8));
        assert_eq!(
            *seen.lock().expect("only pushed to"),
            [
                "catch_panic test: another thread",
                "catch_panic test: this thread"
            ]
        );
    }
}
