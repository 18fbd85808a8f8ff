//! Decoders that use more than one core.

use std::io::{self, BufRead, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

use flate2::bufread::GzDecoder;
use liblzma::bufread::XzDecoder;
use liblzma::stream::MtStreamBuilder;

use super::PIECE;

/// Pieces that the decompressing thread may be ahead.
const AHEAD: usize = 8;

/// Memory that parallel xz may take before it falls back to one thread, in bytes.
const XZ_THREADING_MEMORY: u64 = 512 << 20;

/// Memory that xz may take at all: the largest preset needs 65 MiB, a hostile header may ask for 4 GiB.
const XZ_MEMORY: u64 = 1 << 30;

/// xz on all cores where the file was written in blocks, as `xz -T` does.
///
/// liblzma's parallel decoder ends after one stream; this goes on with the next, and skips the padding between them.
pub(super) struct XzStreams<R> {
    decoder: Option<XzDecoder<R>>,
}

impl<R: BufRead> XzStreams<R> {
    pub(super) fn new(input: R) -> io::Result<Self> {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let stream = MtStreamBuilder::new()
            .threads(u32::try_from(threads).unwrap_or(1))
            .memlimit_threading(XZ_THREADING_MEMORY)
            .memlimit_stop(XZ_MEMORY)
            .decoder()?;
        Ok(Self {
            decoder: Some(XzDecoder::new_stream(input, stream)),
        })
    }
}

impl<R: BufRead> Read for XzStreams<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while let Some(decoder) = &mut self.decoder {
            let n = decoder.read(buf)?;
            if n > 0 {
                return Ok(n);
            }
            let Some(mut input) = self.decoder.take().map(XzDecoder::into_inner) else {
                break;
            };
            if skip_padding(&mut input)?.is_none() {
                return Ok(0);
            }
            *self = Self::new(input)?;
        }
        Ok(0)
    }
}

/// gzip, one member after the other, with padding behind the last as gzip(1) takes it.
///
/// flate2's decoder of several members cannot tell other data behind a member from a member that is cut off.
pub(super) struct GzipMembers<R> {
    decoder: Option<GzDecoder<R>>,
}

impl<R: BufRead> GzipMembers<R> {
    pub(super) fn new(input: R) -> Self {
        Self {
            decoder: Some(GzDecoder::new(input)),
        }
    }
}

impl<R: BufRead> Read for GzipMembers<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while let Some(decoder) = &mut self.decoder {
            let n = decoder.read(buf)?;
            if n > 0 || buf.is_empty() {
                return Ok(n);
            }
            let Some(mut input) = self.decoder.take().map(GzDecoder::into_inner) else {
                break;
            };
            match skip_padding(&mut input)? {
                None => return Ok(0),
                Some(0x1f) => *self = Self::new(input),
                Some(_) => {
                    let what = "it has other data after its compressed data";
                    return Err(io::Error::new(io::ErrorKind::InvalidData, what));
                }
            }
        }
        Ok(0)
    }
}

/// Skips zeros, and tells the first byte behind them.
fn skip_padding(input: &mut impl BufRead) -> io::Result<Option<u8>> {
    loop {
        let next = input.fill_buf()?;
        let padding = next.iter().take_while(|byte| **byte == 0).count();
        let (end, first) = (next.is_empty(), next.get(padding).copied());
        input.consume(padding);
        if end || first.is_some() {
            return Ok(first);
        }
    }
}

/// Reads from `decoder` in another thread. That thread ends by itself once the reader is dropped.
pub(super) fn ahead(mut decoder: impl Read + Send + 'static) -> io::Result<Box<dyn BufRead + Send>> {
    let (full, pieces) = sync_channel(AHEAD);
    let (spare, empty) = channel();
    thread::Builder::new()
        .name("decompress".into())
        .spawn(move || decompress(&mut decoder, &full, &empty))?;
    Ok(Box::new(Ahead {
        pieces,
        spare,
        piece: Vec::new(),
        at: 0,
        ended: false,
    }))
}

fn decompress(decoder: &mut dyn Read, full: &SyncSender<io::Result<Vec<u8>>>, empty: &Receiver<Vec<u8>>) {
    loop {
        let mut piece = empty.try_recv().unwrap_or_default();
        piece.resize(PIECE, 0);
        let mut filled = 0;
        let failed = loop {
            match decoder.read(&mut piece[filled..]) {
                Ok(0) => break None,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Some(error),
            }
            if filled == PIECE {
                break None;
            }
        };
        let last = filled < PIECE;
        piece.truncate(filled);
        // An empty piece would tell of a regular end.
        if !piece.is_empty() && full.send(Ok(piece)).is_err() {
            return;
        }
        if let Some(error) = failed {
            // Nobody listens any more: then nobody needs the error.
            let _ = full.send(Err(error));
            return;
        }
        if last {
            // Tells a regular end from a thread that died.
            let _ = full.send(Ok(Vec::new()));
            return;
        }
    }
}

/// The reader's end of [`ahead`].
struct Ahead {
    pieces: Receiver<io::Result<Vec<u8>>>,
    spare: Sender<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
    ended: bool,
}

impl BufRead for Ahead {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.piece.len() && !self.ended {
            let next = self
                .pieces
                .recv()
                .map_err(|_| io::Error::other("the decompressor died"))??;
            self.ended = next.is_empty();
            // The thread may have ended already.
            let _ = self.spare.send(std::mem::replace(&mut self.piece, next));
            self.at = 0;
        }
        Ok(&self.piece[self.at..])
    }

    fn consume(&mut self, amount: usize) {
        self.at = (self.at + amount).min(self.piece.len());
    }
}

impl Read for Ahead {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(buf)?;
        self.consume(n);
        Ok(n)
    }
}
