//! Resource limits, as `Limit…=` keys write them.

use super::number::{integer_in, size, time_span};
use super::value::ValueError;
use super::words::split_fields;

/// The unit of a resource limit, see setrlimit(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "each says what it is")]
pub enum Limit {
    Number,
    Size,
    Seconds,
    Microseconds,
    Nice,
}

impl Limit {
    /// Whether systemd takes `SOFT[:HARD]`.
    pub(super) fn accepts(self, value: &str) -> Result<bool, ValueError> {
        let fields = split_fields(value).map_err(|_| ValueError::Unbalanced {
            value: value.to_owned(),
        })?;
        Ok(match fields.as_slice() {
            [both] => self.amount(both).is_some(),
            [soft, hard] => match (self.amount(soft), self.amount(hard)) {
                (Some(soft), Some(hard)) if soft > hard => {
                    return Err(ValueError::SoftAboveHard {
                        value: value.to_owned(),
                    });
                }
                (Some(_), Some(_)) => true,
                _ => false,
            },
            // Behind a second colon nothing may follow.
            [soft, hard, last] => {
                last.is_empty()
                    && self
                        .amount(soft)
                        .zip(self.amount(hard))
                        .is_some_and(|(soft, hard)| soft <= hard)
            }
            _ => false,
        })
    }

    /// The limit in its unit; [`u64::MAX`] is infinity.
    fn amount(self, text: &str) -> Option<u64> {
        if text == "infinity" && self != Self::Nice {
            return Some(u64::MAX);
        }
        let number = |text, high| integer_in(text, 0, high).and_then(|value| u64::try_from(value).ok());
        match self {
            Self::Number => number(text, i128::from(u64::MAX) - 1),
            Self::Size => size(text).filter(|&bytes| bytes < u64::MAX),
            Self::Seconds => time_span(text, 1_000_000).map(|span| span.div_ceil(1_000_000)),
            Self::Microseconds => time_span(text, 1),
            Self::Nice => match text.as_bytes().first() {
                Some(b'+') => number(&text[1..], 19).map(|nice| 20 - nice),
                Some(b'-') => number(&text[1..], 20).map(|nice| 20 + nice),
                _ => number(text, 40),
            },
        }
    }
}
