//! Values that journald has compressed, see `OBJECT_COMPRESSED_…` in "Journal File Format".

use std::io::Read as _;

/// A compressed value is refused if its decoder wanted more memory than that: zstd's, in powers of 2, and xz's.
const ZSTD_WINDOW: u32 = 26;
const XZ_MEMORY: u64 = 64 << 20;
/// A value that LZ4 compressed is refused if it says that it was larger: all of it is decoded.
const LZ4_MAX: usize = 64 << 20;

/// At most `limit` bytes of what a value was before it was compressed; `by` is the flag of its object.
pub(super) fn decompressed(by: u8, bytes: &[u8], limit: usize) -> Option<Vec<u8>> {
    let mut whole = Vec::new();
    let most = limit as u64;
    match by {
        1 => {
            let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, 0).ok()?;
            let decoder = liblzma::read::XzDecoder::new_stream(bytes, stream);
            decoder.take(most).read_to_end(&mut whole).ok()?;
        }
        // journald of systemd before 246: the size, and a block.
        2 => {
            let (size, block) = bytes.split_at_checked(8)?;
            let size = usize::try_from(u64::from_le_bytes(size.try_into().ok()?))
                .ok()
                .filter(|size| *size <= LZ4_MAX)?;
            whole = lz4_flex::block::decompress(block, size).ok()?;
            whole.truncate(limit);
        }
        4 => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(bytes).ok()?;
            decoder.window_log_max(ZSTD_WINDOW).ok()?;
            decoder.take(most).read_to_end(&mut whole).ok()?;
        }
        _ => return None,
    }
    Some(whole)
}

#[cfg(test)]
mod tests {
    use super::decompressed;

    #[test]
    fn lz4_is_decoded_up_to_a_limit_and_garbage_is_none() {
        // "abc", then 9 bytes from 3 back, then "!".
        let value = |size: u64, block: &[u8]| [&size.to_le_bytes(), block].concat();
        let block = [0x35, b'a', b'b', b'c', 3, 0, 0x10, b'!'];
        let decoded = |bytes: &[u8], limit| decompressed(2, bytes, limit);
        assert_eq!(decoded(&value(13, &block), 100).unwrap(), b"abcabcabcabc!");
        assert_eq!(decoded(&value(13, &block), 5).unwrap(), b"abcab");
        for garbage in [
            vec![1, 2, 3],
            value(13, &block[..3]),
            // Larger than it says.
            value(5, &block),
            value(u64::MAX, &block),
            // From before its beginning.
            value(13, &[0x10, b'a', 2, 0, 0]),
        ] {
            assert_eq!(decoded(&garbage, 100), None, "{garbage:?}");
        }
    }
}
