//! What a failed `up` undoes: every step leaves its counter-step here.

use crate::failure::Failure;

type Undo = Box<dyn FnOnce() -> Result<(), Failure>>;

/// A stack of counter-steps, run from the last to the first when it is dropped.
#[derive(Default)]
pub struct Rollback {
    steps: Vec<Undo>,
}

impl Rollback {
    /// Remembers how to undo the step just done.
    pub fn push(&mut self, undo: impl FnOnce() -> Result<(), Failure> + 'static) {
        self.steps.push(Box::new(undo));
    }

    /// All steps succeeded: nothing is undone.
    pub fn commit(mut self) {
        self.steps.clear();
    }
}

impl Drop for Rollback {
    fn drop(&mut self) {
        while let Some(undo) = self.steps.pop() {
            if let Err(failure) = undo() {
                // The first failure is on its way to the person; this one comes on top.
                eprintln!("swapfs: while undoing: {failure}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::rc::Rc;

    fn with_steps(log: &Rc<RefCell<Vec<u32>>>) -> Rollback {
        let mut rollback = Rollback::default();
        for step in 0..3 {
            let log = Rc::clone(log);
            rollback.push(move || {
                log.borrow_mut().push(step);
                if step == 1 { Err(Failure::new("step", "fails")) } else { Ok(()) }
            });
        }
        rollback
    }

    #[test]
    fn steps_are_undone_in_reverse_even_past_one_that_fails() {
        let log = Rc::default();
        drop(with_steps(&log));
        assert_eq!(*log.borrow(), [2, 1, 0]);
    }

    #[test]
    fn nothing_is_undone_after_success() {
        let log = Rc::default();
        with_steps(&log).commit();
        assert!(log.borrow().is_empty());
    }
}
