//! Blocks of LZ4, as journald of systemd before 246 compresses: see "LZ4 Block Format Description". Decoding only.

/// Decodes at most `limit` bytes of a block; `None` if it is none.
pub(super) fn decode(block: &[u8], limit: usize) -> Option<Vec<u8>> {
    let mut input = block;
    let mut out: Vec<u8> = Vec::new();
    loop {
        let token = byte(&mut input)?;
        let literals = length(token >> 4, &mut input)?;
        let (taken, rest) = input.split_at_checked(literals)?;
        out.extend_from_slice(&taken[..taken.len().min(limit - out.len())]);
        input = rest;
        if input.is_empty() || out.len() >= limit {
            return Some(out);
        }
        let distance = usize::from(u16::from_le_bytes([byte(&mut input)?, byte(&mut input)?]));
        let count = length(token & 15, &mut input)?.checked_add(4)?;
        let start = out.len().checked_sub(distance).filter(|_| distance > 0)?;
        for at in start..start + count.min(limit - out.len()) {
            // What is copied may be what was just written.
            out.push(out[at]);
        }
        if out.len() >= limit {
            return Some(out);
        }
    }
}

fn byte(input: &mut &[u8]) -> Option<u8> {
    let (first, rest) = input.split_first()?;
    *input = rest;
    Some(*first)
}

/// A length of which the token says the first four bits.
fn length(first: u8, input: &mut &[u8]) -> Option<usize> {
    let mut length = usize::from(first);
    if first == 15 {
        loop {
            let more = byte(input)?;
            length = length.checked_add(usize::from(more))?;
            if more != 255 {
                break;
            }
        }
    }
    Some(length)
}

#[cfg(test)]
mod tests {
    use super::decode;

    #[test]
    fn literals_and_copies_are_decoded() {
        // "abc", then 9 bytes from 3 back, then "!".
        let block = [0x35, b'a', b'b', b'c', 3, 0, 0x10, b'!'];
        assert_eq!(decode(&block, 100).unwrap(), b"abcabcabcabc!");
        assert_eq!(decode(&block, 5).unwrap(), b"abcab");
        let mut long = vec![0xf0, 255, 0];
        long.extend([b'x'; 270]);
        assert_eq!(decode(&long, 1000).unwrap(), [b'x'; 270]);
    }

    #[test]
    fn garbage_is_none() {
        for block in [
            [].as_slice(),
            &[0x10],
            &[0x00, 1, 0],
            &[0x10, b'a', 0, 0, 0],
            &[0x10, b'a', 2, 0, 0],
            &[0xf0, 255],
        ] {
            assert_eq!(decode(block, 100), None, "{block:?}");
        }
    }
}
