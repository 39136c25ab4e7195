//! A sentence of a fixed size, which says why something was refused.
//!
//! It may be made because there is no memory, so it takes none. What does not fit is cut off, with a mark.

use core::fmt::{self, Write};
use core::ops::Deref;

/// The most bytes of a sentence.
pub const SENTENCE_MAX: usize = 224;

/// What stands at the end of one that was cut off.
const CUT: &str = "...";

/// One sentence, of at most [`SENTENCE_MAX`] bytes.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Sentence(heapless::String<SENTENCE_MAX>);

/// Makes a [`Sentence`] with the arguments of `format!`.
macro_rules! sentence {
    ($($argument:tt)*) => {
        $crate::proto::sentence::Sentence::from(format_args!($($argument)*))
    };
}
pub(crate) use sentence;

impl Sentence {
    /// The text of some bytes; those that are no text become U+FFFD.
    #[must_use]
    pub fn of_bytes(bytes: &[u8]) -> Self {
        let mut new = Self::default();
        for chunk in bytes.utf8_chunks() {
            let mark = if chunk.invalid().is_empty() { "" } else { "\u{fffd}" };
            if new.write_str(chunk.valid()).and_then(|()| new.write_str(mark)).is_err() {
                break;
            }
        }
        new
    }
}

/// Takes what fits; an error says that it was not all.
impl Write for Sentence {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.push_str(text).is_ok() {
            return Ok(());
        }
        let room = SENTENCE_MAX.saturating_sub(CUT.len());
        // What is there already may reach into the place of the mark.
        let kept = self.0.floor(room);
        self.0.truncate(kept);
        let fits = text.floor(room.saturating_sub(kept));
        for part in [text.get(..fits).unwrap_or(""), CUT] {
            let _all = self.0.push_str(part);
        }
        Err(fmt::Error)
    }
}

/// Where a text can be cut.
trait Floor {
    /// The last boundary of characters that is not behind `at`.
    fn floor(&self, at: usize) -> usize;
}

impl Floor for str {
    fn floor(&self, at: usize) -> usize {
        let mut at = at.min(self.len());
        while !self.is_char_boundary(at) {
            at = at.saturating_sub(1);
        }
        at
    }
}

impl From<fmt::Arguments<'_>> for Sentence {
    fn from(arguments: fmt::Arguments<'_>) -> Self {
        let mut new = Self::default();
        // An error says that it was cut off, which the reader sees.
        let _ = new.write_fmt(arguments);
        new
    }
}

impl From<&str> for Sentence {
    fn from(text: &str) -> Self {
        let mut new = Self::default();
        // As above.
        let _ = new.write_str(text);
        new
    }
}

impl Deref for Sentence {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl core::error::Error for Sentence {}

impl fmt::Display for Sentence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Sentence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl PartialEq<str> for Sentence {
    fn eq(&self, other: &str) -> bool {
        &**self == other
    }
}

impl PartialEq<&str> for Sentence {
    fn eq(&self, other: &&str) -> bool {
        &**self == *other
    }
}

impl From<crate::mem::NoMemory> for Sentence {
    fn from(_: crate::mem::NoMemory) -> Self {
        Self::from("no memory is left")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::String;

    #[test]
    fn what_fits_is_kept_and_what_does_not_is_cut_between_two_characters() {
        assert_eq!(sentence!("domain {}: {}", 7, "gone"), "domain 7: gone");
        for len in 0..300 {
            // Two bytes each, in two pieces.
            let text: String = core::iter::repeat_n('\u{e9}', len).collect();
            let made = sentence!("x{}{text}", &text);
            let whole = alloc::format!("x{text}{text}");
            if whole.len() <= SENTENCE_MAX {
                assert_eq!(*made, whole);
            } else {
                let kept = made.strip_suffix(CUT).unwrap();
                assert!(whole.starts_with(kept) && made.len() <= SENTENCE_MAX);
                assert!(made.len() >= SENTENCE_MAX - 1, "{}", made.len());
            }
        }
    }

    #[test]
    fn nothing_follows_what_was_cut_off() {
        let long: String = core::iter::repeat_n('a', 500).collect();
        let made = sentence!("{long}, and {long}");
        assert!(made.ends_with("aaa...") && !made.contains("and"));
        assert_eq!(made.len(), SENTENCE_MAX);
    }

    #[test]
    fn bytes_that_are_no_text_are_shown() {
        assert_eq!(Sentence::of_bytes(b"a\xff\xfeb"), "a\u{fffd}\u{fffd}b");
        assert_eq!(Sentence::of_bytes(b"fine"), "fine");
    }
}
