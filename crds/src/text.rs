//! The rule for ids, units and references: the same for records, queries and the manifest.

/// Most characters of a text.
const CHARACTERS: usize = 200;
/// Most bytes of a text in UTF-8.
const BYTES: usize = 400;

/// The cause why a text is no id, unit or reference.
///
/// Texts compare byte by byte, so a text that looks like another one is refused: white space at either end, and
/// invisible characters. U+200C and U+200D are accepted: Persian and emoji need them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidText {
    /// The text is empty.
    #[error("must not be empty")]
    Empty,
    /// More than 200 characters.
    #[error("has more than 200 characters")]
    TooLong,
    /// More than 400 bytes.
    #[error("has more than 400 bytes in UTF-8")]
    TooManyBytes,
    /// White space before the first other character.
    #[error("starts with {}; remove it", named(*.0))]
    Starts(char),
    /// White space behind the last other character.
    #[error("ends with {}; remove it", named(*.0))]
    Ends(char),
    /// A character that no text holds.
    #[error("has {} as character {at}; remove it", named(*character))]
    Holds {
        /// The character.
        character: char,
        /// Its place, from 1, in characters.
        at: usize,
    },
}

/// Checks an id, a unit or a reference.
///
/// # Errors
/// The rule that it breaks, with the character's name and place.
pub fn check_text(text: &str) -> Result<(), InvalidText> {
    let (Some(first), Some(last)) = (text.chars().next(), text.chars().next_back()) else {
        return Err(InvalidText::Empty);
    };
    if text.len() > CHARACTERS && text.chars().count() > CHARACTERS {
        return Err(InvalidText::TooLong);
    }
    if text.len() > BYTES {
        return Err(InvalidText::TooManyBytes);
    }
    // Most texts are of these bytes alone.
    if text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(());
    }
    if first.is_whitespace() {
        return Err(InvalidText::Starts(first));
    }
    if last.is_whitespace() {
        return Err(InvalidText::Ends(last));
    }
    match text.chars().zip(1..).find(|(character, _)| is_refused(*character)) {
        Some((character, at)) => Err(InvalidText::Holds { character, at }),
        None => Ok(()),
    }
}

/// Whether a character is a control character, is invisible, or changes the direction of text.
fn is_refused(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}'
        )
}

/// The name and the code of an invisible character.
fn named(character: char) -> String {
    let name = match character {
        '\t' => "a tab",
        '\n' => "a line feed",
        '\r' => "a carriage return",
        ' ' => "a space",
        '\u{85}' => "a next line",
        '\u{a0}' => "a no-break space",
        '\u{61c}' => "an Arabic letter mark",
        '\u{1680}' => "an Ogham space mark",
        '\u{2000}' => "an en quad",
        '\u{2001}' => "an em quad",
        '\u{2002}' => "an en space",
        '\u{2003}' => "an em space",
        '\u{2004}' => "a three-per-em space",
        '\u{2005}' => "a four-per-em space",
        '\u{2006}' => "a six-per-em space",
        '\u{2007}' => "a figure space",
        '\u{2008}' => "a punctuation space",
        '\u{2009}' => "a thin space",
        '\u{200a}' => "a hair space",
        '\u{200b}' => "a zero-width space",
        '\u{200e}' => "a left-to-right mark",
        '\u{200f}' => "a right-to-left mark",
        '\u{2028}' => "a line separator",
        '\u{2029}' => "a paragraph separator",
        '\u{202a}' => "a left-to-right embedding",
        '\u{202b}' => "a right-to-left embedding",
        '\u{202c}' => "a pop directional formatting",
        '\u{202d}' => "a left-to-right override",
        '\u{202e}' => "a right-to-left override",
        '\u{202f}' => "a narrow no-break space",
        '\u{205f}' => "a medium mathematical space",
        '\u{2066}' => "a left-to-right isolate",
        '\u{2067}' => "a right-to-left isolate",
        '\u{2068}' => "a first strong isolate",
        '\u{2069}' => "a pop directional isolate",
        '\u{3000}' => "an ideographic space",
        '\u{feff}' => "a byte order mark",
        _ => "a control character",
    };
    format!("{name} (U+{:04X})", u32::from(character))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        check_text(text).expect_err(text).to_string()
    }

    #[test]
    fn text_that_looks_like_another_is_refused_with_the_character() {
        for (text, message) in [
            ("EUR  ", "ends with a space (U+0020); remove it"),
            (" EUR", "starts with a space (U+0020); remove it"),
            ("EUR\u{a0}", "ends with a no-break space (U+00A0); remove it"),
            ("EUR\u{200b}", "has a zero-width space (U+200B) as character 4; remove it"),
            ("\u{feff}EUR", "has a byte order mark (U+FEFF) as character 1; remove it"),
            ("é\u{202e}RUE", "has a right-to-left override (U+202E) as character 2; remove it"),
            ("a\tb", "has a tab (U+0009) as character 2; remove it"),
            ("a\u{7f}", "has a control character (U+007F) as character 2; remove it"),
            ("\r\n", "starts with a carriage return (U+000D); remove it"),
            (" ", "starts with a space (U+0020); remove it"),
        ] {
            assert_eq!(refusal(text), message, "{text:?}");
        }
    }

    #[test]
    fn every_white_space_is_refused_at_either_end_by_its_name() {
        let all: Vec<char> = ('\0'..=char::MAX).filter(|character| character.is_whitespace()).collect();
        assert_eq!(all.len(), 25);
        for space in all {
            let code = format!("(U+{:04X})", u32::from(space));
            for text in [format!("{space}a"), format!("a{space}")] {
                assert!(refusal(&text).contains(&code), "{text:?}");
            }
            assert!(space < ' ' && !space.is_whitespace() || !named(space).is_empty());
            assert_eq!(check_text(&format!("a{space}b")).is_ok(), !space.is_control(), "{code} within a text");
        }
    }

    #[test]
    fn invisible_characters_are_refused_anywhere() {
        for hidden in "\u{61c}\u{200b}\u{200e}\u{200f}\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\u{2066}\u{2067}\u{2068}\u{2069}\u{feff}"
            .chars()
        {
            for text in [format!("{hidden}a"), format!("a{hidden}b"), format!("a{hidden}"), hidden.to_string()] {
                assert!(!refusal(&text).contains("control"), "{text:?} has a name");
            }
        }
    }

    #[test]
    fn joiners_of_persian_and_emoji_are_accepted() {
        for text in ["می\u{200c}خواهم", "👩\u{200d}👩\u{200d}👧", "a b", "a/b%2F+c", "كتاب", "é", "日本\u{3000}語"]
        {
            assert_eq!(check_text(text), Ok(()), "{text}");
        }
    }

    #[test]
    fn the_bounds_of_length_are_exact() {
        assert_eq!(check_text(""), Err(InvalidText::Empty));
        assert_eq!(check_text(&"x".repeat(200)), Ok(()));
        assert_eq!(check_text(&"x".repeat(201)), Err(InvalidText::TooLong));
        assert_eq!(check_text(&"é".repeat(200)), Ok(()));
        assert_eq!(check_text(&"𝄞".repeat(100)), Ok(()));
        assert_eq!(check_text(&"𝄞".repeat(101)), Err(InvalidText::TooManyBytes));
    }
}
