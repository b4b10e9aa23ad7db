//! Spans: who did what, from when to when, told to whoever listens through the `tracing` crate.
//!
//! Their names and fields are a contract, `docs/events.md`. Nothing here listens: without a subscriber a span is one
//! relaxed load. Spans of threads that the engine starts are children of the span that was open where they were started.

use crate::error::{Error, ErrorKind, Result};
use std::fmt;
use std::str::FromStr;
use tracing::Span;

/// Joins the spans, log lines, report and error of one run: 128 bits, as in W3C Trace Context.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId(u128);

impl TraceId {
    /// One that nobody else has.
    ///
    /// ```
    /// use transload::TraceId;
    /// let id = TraceId::fresh();
    /// assert_eq!(id.to_string().parse::<TraceId>()?, id);
    /// # Ok::<(), transload::Error>(())
    /// ```
    pub fn fresh() -> Self {
        let mut bytes = [0; 16];
        let filled = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::NONBLOCK);
        if filled != Ok(bytes.len()) {
            // A machine that has just booted; unique is enough, secret it need not be.
            let since =
                std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            bytes = (since.as_nanos() << 32 | u128::from(std::process::id())).to_be_bytes();
        }
        TraceId(u128::from_be_bytes(bytes).max(1))
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for TraceId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for TraceId {
    type Err = Error;

    /// 32 hexadecimal digits, not all of them zero.
    fn from_str(text: &str) -> Result<Self> {
        let digits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        match u128::from_str_radix(text, 16) {
            Ok(id) if digits && id != 0 => Ok(TraceId(id)),
            _ => Err(Error::new(ErrorKind::InvalidArgument, format!("'{text}' is no trace id"))
                .with_hint("32 hexadecimal digits, not all zero")),
        }
    }
}

/// Runs `work` inside `span`, and records there the kind of the error that came of it.
pub(crate) fn within<T>(span: Span, work: impl FnOnce(&Span) -> Result<T>) -> Result<T> {
    let result = span.in_scope(|| work(&span));
    if let Err(error) = &result {
        span.record("error", error.kind().name());
    }
    result
}

/// A span of the engine: `stage!("claim", kind = "blob", digest)`. Bare names are recorded later; `error` each has.
macro_rules! stage {
    ($name:literal $(, $field:ident $(= $value:expr)?)* $(,)?) => {
        $crate::trace::span!(DEBUG, $name $(, $field $(= $value)?)*)
    };
}

/// The outermost span of a verb, like [`stage!`].
macro_rules! verb {
    ($name:literal $(, $field:ident $(= $value:expr)?)* $(,)?) => {
        $crate::trace::span!(INFO, $name $(, $field $(= $value)?)*)
    };
}

macro_rules! span {
    (@value) => { tracing::field::Empty };
    (@value $value:expr) => { $value };
    ($level:ident, $name:literal $(, $field:ident $(= $value:expr)?)*) => {
        tracing::span!(
            target: "transload", tracing::Level::$level, $name,
            $($field = $crate::trace::span!(@value $($value)?),)*
            error = tracing::field::Empty
        )
    };
}

pub(crate) use {span, stage, verb};

/// Shows a digest or a path in a span.
pub(crate) use tracing::field::display;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_id_is_what_w3c_trace_context_says() {
        assert_ne!(TraceId::fresh(), TraceId::fresh());
        assert_eq!(TraceId(0xab).to_string(), format!("{:0>32}", "ab"));
        for wrong in ["", "0", &"0".repeat(32), &"g".repeat(32), &format!("+{}", "1".repeat(31))] {
            assert!(wrong.parse::<TraceId>().is_err(), "{wrong:?}");
        }
    }
}
