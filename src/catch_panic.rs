//! Libraries that panic at some broken files, and what is made of it.

use std::{cell::Cell, panic, sync::Once};

/// What `work` returns, or none where it panics, of which nothing is printed then. Panics of other threads are told as ever.
pub(crate) fn catch_panic<T>(work: impl FnOnce() -> T + panic::UnwindSafe) -> Option<T> {
    thread_local! { static IS_SUPPRESSED: Cell<bool> = const { Cell::new(false) }; }
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let default_hook = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if !IS_SUPPRESSED.get() {
                default_hook(panic);
            }
        }));
    });
    IS_SUPPRESSED.set(true);
    let result = panic::catch_unwind(work).ok();
    IS_SUPPRESSED.set(false);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_none_and_anything_else_is_itself() {
        assert_eq!(catch_panic(|| 7), Some(7));
        assert_eq!(catch_panic(|| -> u32 { panic!("not told") }), None);
        assert_eq!(catch_panic(|| 8), Some(8));
    }
}
