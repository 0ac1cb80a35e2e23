//! The value of the `fault=` option: which operations fail, how, and how often.
//!
//! `OP:ERRNO:RATE` joined by `+`, for example `write:ENOSPC:1/50+read:EIO:0.001`. The habit of a
//! fault filter in front of any back end is nbdkit's (`filters/error`); the seed is ours, so that
//! a failure replays.

/// What `fault=` takes, for messages.
pub const ALLOWED: &str = "OP:ERRNO:RATE joined by +, where OP is read, write, discard, flush or \
     all, ERRNO is EIO or ENOSPC, and RATE is like 1/50 or 0.02";

/// The operations of a back end that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultOperation {
    /// Reads of slots.
    Read,
    /// Writes of slots.
    Write,
    /// Discards.
    Discard,
    /// Flushes.
    Flush,
    /// Each of them.
    All,
}

/// How an operation fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultError {
    /// The device failed: `EIO`.
    Io,
    /// The device is full: `ENOSPC`.
    NoSpace,
}

/// One rule: of the operations named, this share fails.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FaultRule {
    /// Which operations.
    pub operation: FaultOperation,
    /// With what.
    pub error: FaultError,
    /// How many of them, from 0.0 to 1.0.
    pub rate: f64,
}

/// All rules of a volume, and the seed of the dice.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct FaultPlan {
    /// The rules; none: nothing fails.
    pub rules: Vec<FaultRule>,
    /// The same seed makes the same decisions.
    pub seed: u64,
}

/// Parses the value of `fault=`; an empty one has no rules.
///
/// # Errors
/// What is allowed, with the part that was not understood.
pub fn parse(text: &str) -> Result<Vec<FaultRule>, String> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    text.split('+')
        .map(|rule| parse_rule(rule).ok_or_else(|| format!("in '{rule}': it takes {ALLOWED}")))
        .collect()
}

fn parse_rule(text: &str) -> Option<FaultRule> {
    let mut parts = text.split(':');
    let operation = match parts.next()? {
        "read" => FaultOperation::Read,
        "write" => FaultOperation::Write,
        "discard" => FaultOperation::Discard,
        "flush" => FaultOperation::Flush,
        "all" => FaultOperation::All,
        _ => return None,
    };
    let error = match parts.next()? {
        "EIO" => FaultError::Io,
        "ENOSPC" => FaultError::NoSpace,
        _ => return None,
    };
    let rate = parts.next()?;
    let rate = match rate.split_once('/') {
        Some((of, all)) => of.parse::<u32>().ok()? as f64 / f64::from(all.parse::<u32>().ok()?),
        None => rate.parse().ok()?,
    };
    if parts.next().is_some() || !(0.0..=1.0).contains(&rate) {
        return None;
    }
    Some(FaultRule { operation, error, rate })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_joined_by_plus() {
        assert_eq!(
            parse("write:ENOSPC:1/50+all:EIO:0.5"),
            Ok(vec![
                FaultRule {
                    operation: FaultOperation::Write,
                    error: FaultError::NoSpace,
                    rate: 0.02
                },
                FaultRule { operation: FaultOperation::All, error: FaultError::Io, rate: 0.5 },
            ])
        );
        assert_eq!(parse(""), Ok(vec![]));
    }

    #[test]
    fn what_is_not_a_rule_is_named() {
        for bad in [
            "write",
            "write:EIO",
            "write:EPERM:1",
            "seek:EIO:1",
            "read:EIO:2",
            "read:EIO:1/0",
            "read:EIO:nan",
            "read:EIO:1:1",
        ] {
            let error = parse(bad).unwrap_err();
            assert!(error.starts_with(&format!("in '{bad}'")), "{error}");
        }
    }
}
