//! Ctrl-C and SIGTERM as a flag that every long loop looks at, so that work is undone in order.

use crate::failure::Failure;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether the person (or the service manager) wants the program to stop.
#[derive(Debug, Clone, Default)]
pub struct Interrupt {
    raised: Arc<AtomicBool>,
}

impl Interrupt {
    /// Takes SIGINT, SIGTERM and SIGHUP from now on: they no longer end the process.
    ///
    /// # Errors
    /// If a handler can't be installed.
    pub fn install() -> Result<Interrupt, Failure> {
        let interrupt = Interrupt::default();
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&interrupt.raised))
                .map_err(|error| Failure::os("signals", "install a handler", &error))?;
        }
        Ok(interrupt)
    }

    /// A signal came.
    #[must_use]
    pub fn is_raised(&self) -> bool {
        self.raised.load(Ordering::Relaxed)
    }

    /// Fails if a signal came: for the places between two steps.
    ///
    /// # Errors
    /// [`Failure`] that says which step was not begun.
    pub fn check(&self, next_step: &str) -> Result<(), Failure> {
        if self.is_raised() {
            return Err(Failure::new("interrupted", format_args!("before the step: {next_step}")));
        }
        Ok(())
    }

    /// As if a signal had come.
    #[cfg(test)]
    pub(crate) fn raise(&self) {
        self.raised.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_raised_flag_names_the_step_that_was_not_begun() {
        let interrupt = Interrupt::default();
        assert!(interrupt.check("mount").is_ok());
        interrupt.raise();
        let failure = interrupt.check("mount").unwrap_err();
        assert_eq!(failure.to_string(), "interrupted: before the step: mount");
    }
}
