//! Ends of strings, objects and other values of JSON.

use std::io::Result as Read;

use anyhow::bail;

use super::{rows::LONGEST, window::Window};

/// Most bytes in which an end is searched.
const LOOKED: usize = 8 * LONGEST;

/// Offset behind the string that begins at `offset`, or of the line's end where it has none.
pub(super) fn string_end(window: &mut Window, offset: usize) -> Read<usize> {
    let (mut offset, mut is_escaped) = (offset + 1, false);
    while let Some(byte) = window.at(offset)? {
        match byte {
            b'\n' | b'\r' => return Ok(offset),
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => return Ok(offset + 1),
            _ => {}
        }
        offset += 1;
        if offset > LOOKED {
            break;
        }
    }
    Ok(offset)
}

/// End of the object that begins here, or an error.
pub(super) fn object_end(window: &mut Window) -> Read<std::result::Result<usize, &'static str>> {
    let (mut open, mut offset) = (Vec::new(), 0);
    while let Some(byte) = window.at(offset)? {
        offset += 1;
        match byte {
            b'"' => {
                offset = string_end(window, offset - 1)?;
                if offset > LOOKED || window.at(offset - 1)? != Some(b'"') {
                    return Ok(Err("holds a string that is not closed on its line"));
                }
            }
            b'{' => open.push(b'}'),
            b'[' => open.push(b']'),
            b'}' | b']' if open.pop() != Some(byte) => return Ok(Err("holds a bracket that closes none")),
            b'}' | b']' if open.is_empty() => return Ok(Ok(offset)),
            _ => {}
        }
        if offset > LOOKED {
            break;
        }
    }
    Ok(Err("has no end"))
}

/// Passes a value that holds no records, of any length.
pub(super) fn pass_value(window: &mut Window) -> anyhow::Result<()> {
    let mut depth = 0_usize;
    loop {
        let Some(byte) = window.at(0)? else { bail!("the JSON ends in the middle") };
        match byte {
            b'"' => {
                let length = string_end(window, 0)?;
                window.take(length)?;
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' | b',' if depth == 0 => return Ok(()),
            b'}' | b']' => depth -= 1,
            _ => {}
        }
        window.take(1)?;
    }
}

/// JSON without white space between its tokens, so on one line.
pub(super) fn without_space(raw: &[u8]) -> Vec<u8> {
    let (mut in_string, mut is_escaped) = (false, false);
    raw.iter()
        .copied()
        .filter(|byte| {
            match byte {
                _ if is_escaped => is_escaped = false,
                b'\\' => is_escaped = in_string,
                b'"' => in_string = !in_string,
                _ => {}
            }
            in_string || !byte.is_ascii_whitespace()
        })
        .collect()
}
