//! Extended headers of pax, see pax(1p), and the lists of sparse pieces that GNU tar keeps in them.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use super::Problem;

/// The most memory in bytes that the records of one entry may take: xattrs of 64 KiB each fit well.
const MAX_OWN: usize = 8 << 20;

/// The same for those that hold for all entries to come: what real archives have there is a comment.
const MAX_GLOBAL: usize = 1 << 20;

/// What a record takes besides its bytes, roughly.
const OVERHEAD: usize = 100;

/// The kernel's limit of an extended attribute, `XATTR_SIZE_MAX` of linux/limits.h.
const MAX_XATTR: usize = 64 << 10;

/// How the keys of extended attributes begin.
pub(super) const XATTR: &[u8] = b"SCHILY.xattr.";

/// Key and value.
type Record<'a> = (&'a [u8], &'a [u8]);

/// Takes the first record off `bytes`, of the form `LENGTH KEY=VALUE\n`. Values may hold any byte, newlines included.
fn next_record<'a>(bytes: &mut &'a [u8]) -> Result<Option<Record<'a>>, Problem> {
    const BAD: Problem = Problem::BadField("extended header");
    // Some writers pad with zeros.
    if bytes.first().is_none_or(|first| *first == 0) {
        return Ok(None);
    }
    let space = bytes.iter().take(20).position(|byte| *byte == b' ').ok_or(BAD)?;
    let length = usize::try_from(decimal(&bytes[..space]).ok_or(BAD)?).map_err(|_| BAD)?;
    let record = bytes.get(space + 1..length).ok_or(BAD)?;
    let [record @ .., b'\n'] = record else { return Err(BAD) };
    let equals = record.iter().position(|byte| *byte == b'=').ok_or(BAD)?;
    let (key, value) = (&record[..equals], &record[equals + 1..]);
    if key.starts_with(XATTR) && value.len() > MAX_XATTR {
        return Err(Problem::HugeXattr(value.len()));
    }
    *bytes = &bytes[length..];
    Ok(Some((key, value)))
}

/// Records that hold for all entries to come, each key once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Global {
    values: BTreeMap<Vec<u8>, Vec<u8>>,
    size: usize,
}

impl Global {
    /// Adds the records of an extended header; later ones take the place of earlier ones.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> Result<(), Problem> {
        while let Some((key, value)) = next_record(&mut bytes)? {
            self.size += key.len() + value.len() + OVERHEAD;
            if let Some(earlier) = self.values.insert(key.to_vec(), value.to_vec()) {
                self.size -= key.len() + earlier.len() + OVERHEAD;
            }
            if self.size > MAX_GLOBAL {
                return Err(Problem::ManyRecords);
            }
        }
        Ok(())
    }
}

/// The records of an entry: its own in their order, and below them those that hold for all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Records {
    own: Vec<(Vec<u8>, Vec<u8>)>,
    size: usize,
    global: Arc<Global>,
}

impl Records {
    /// Adds the records of an extended header; later ones win.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> Result<(), Problem> {
        while let Some((key, value)) = next_record(&mut bytes)? {
            self.size += key.len() + value.len() + OVERHEAD;
            if self.size > MAX_OWN {
                return Err(Problem::ManyRecords);
            }
            self.own.push((key.to_vec(), value.to_vec()));
        }
        Ok(())
    }

    /// Where there is no record of its own, the global one counts.
    pub(super) fn over(self, global: &Arc<Global>) -> Self {
        Self {
            global: Arc::clone(global),
            ..self
        }
    }

    /// The last value of a key; an empty one means as if it had never been given.
    pub(super) fn get(&self, key: &str) -> Option<&[u8]> {
        let own = self.own.iter().rev().find(|(name, _)| name == key.as_bytes());
        own.map(|(_, value)| value)
            .or_else(|| self.global.values.get(key.as_bytes()))
            .map(Vec::as_slice)
            .filter(|value| !value.is_empty())
    }

    /// The last values of all keys that begin with `prefix`, by what follows it.
    pub(super) fn with_prefix(&self, prefix: &[u8]) -> BTreeMap<&[u8], &[u8]> {
        let global = self
            .global
            .values
            .range::<[u8], _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix));
        global
            .chain(self.own.iter().map(|(key, value)| (key, value)))
            .filter_map(|(key, value)| Some((key.strip_prefix(prefix)?, value.as_slice())))
            .collect()
    }

    /// A decimal number.
    pub(super) fn number(&self, key: &'static str) -> Result<Option<u64>, Problem> {
        self.get(key)
            .map(|value| decimal(value).ok_or(Problem::BadField(key)))
            .transpose()
    }

    /// A time as seconds and nanoseconds; the fraction counts forward, also before 1970.
    pub(super) fn time(&self, key: &'static str) -> Result<Option<(i64, u32)>, Problem> {
        self.get(key)
            .map(|value| time(value).ok_or(Problem::BadField(key)))
            .transpose()
    }

    /// Whether it has none of its own.
    pub(super) fn is_empty(&self) -> bool {
        self.own.is_empty()
    }
}

/// Digits only, as u64.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |value, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

fn time(value: &[u8]) -> Option<(i64, u32)> {
    let (negative, value) = value.strip_prefix(b"-").map_or((false, value), |rest| (true, rest));
    let (whole, fraction) = match value.iter().position(|byte| *byte == b'.') {
        Some(dot) => (&value[..dot], &value[dot + 1..]),
        None => (value, &value[..0]),
    };
    let seconds = i64::try_from(decimal(whole)?).ok()?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nanos = (0..9).fold(0, |nanos, i| {
        nanos * 10 + u32::from(fraction.get(i).map_or(0, |digit| digit - b'0'))
    });
    match (negative, nanos) {
        (false, _) => Some((seconds, nanos)),
        (true, 0) => Some((-seconds, 0)),
        (true, _) => Some((-seconds - 1, 1_000_000_000 - nanos)),
    }
}

/// Where the data of a sparse file belongs: ascending pieces of (offset, length), nothing empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sparse {
    /// The size of the file, holes included.
    pub(super) size: u64,
    /// The pieces.
    pub(super) pieces: Vec<(u64, u64)>,
}

impl Sparse {
    /// Checks that the pieces ascend, do not overlap, end within `size` and hold `data` bytes together.
    pub(super) fn new(size: u64, pieces: impl IntoIterator<Item = (u64, u64)>, data: u64) -> Result<Self, Problem> {
        let (mut end, mut total) = (0_u64, 0_u64);
        let mut kept = Vec::new();
        for (offset, length) in pieces {
            if offset < end {
                return Err(Problem::SparseMap);
            }
            end = offset
                .checked_add(length)
                .filter(|end| *end <= size)
                .ok_or(Problem::SparseMap)?;
            // No overflow: the pieces do not overlap.
            total += length;
            if length > 0 {
                kept.push((offset, length));
            }
        }
        if total != data || i64::try_from(size).is_err() {
            return Err(Problem::SparseMap);
        }
        Ok(Self { size, pieces: kept })
    }
}

/// The pieces in the formats 0.0 (a record each for offset and length) and 0.1 (one record, separated by commas).
pub(super) fn old_map(records: &Records) -> Result<Vec<(u64, u64)>, Problem> {
    let mut numbers = Vec::new();
    if let Some(map) = records.get("GNU.sparse.map") {
        for number in map.split(|byte| *byte == b',') {
            numbers.push(decimal(number).ok_or(Problem::SparseMap)?);
        }
    } else {
        for (key, value) in &records.own {
            if key == b"GNU.sparse.offset" || key == b"GNU.sparse.numbytes" {
                numbers.push(decimal(value).ok_or(Problem::SparseMap)?);
            }
        }
    }
    pairs(&numbers)
}

/// Offsets and lengths by turns.
pub(super) fn pairs(numbers: &[u64]) -> Result<Vec<(u64, u64)>, Problem> {
    let (pairs, rest) = numbers.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(Problem::SparseMap);
    }
    Ok(pairs.iter().map(|[offset, length]| (*offset, *length)).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(bytes: &[u8]) -> Result<Records, Problem> {
        let mut records = Records::default();
        records.read(bytes).map(|()| records)
    }

    #[test]
    fn an_entrys_own_records_win_over_global_ones() {
        let mut global = Global::default();
        global.read(b"6 a=1\n6 b=1\n8 x.y=1\n8 x.z=1\n6 a=2\n").unwrap();
        let records = parse(b"5 b=\n6 c=3\n8 x.z=2\n8 x.z=3\n")
            .unwrap()
            .over(&Arc::new(global));
        assert_eq!(records.get("a"), Some(&b"2"[..]));
        assert_eq!(records.get("b"), None);
        assert_eq!(records.get("c"), Some(&b"3"[..]));
        let x = [(&b"y"[..], &b"1"[..]), (b"z", b"3")];
        assert_eq!(records.with_prefix(b"x."), BTreeMap::from(x));
    }

    #[test]
    fn values_may_hold_newlines_and_equal_signs() {
        for bad in [
            &b"12 path=a\nb\n9 x=y=z\n5 e=\n"[..],
            b"999 a=b\n",
            b"0 a=b\n",
            b"5 a=bX",
            b"a=b\n",
            b"6 abcd\n",
        ] {
            assert_eq!(parse(bad), Err(Problem::BadField("extended header")));
        }
        let records = parse(b"12 path=a\nb\n8 x=y=z\n5 e=\n\0\0").unwrap();
        assert_eq!(records.get("path"), Some(&b"a\nb"[..]));
        assert_eq!(records.get("x"), Some(&b"y=z"[..]));
        assert_eq!(records.get("e"), None);
    }

    #[test]
    fn times_before_1970_count_forward() {
        assert_eq!(time(b"1700000000.123456789"), Some((1_700_000_000, 123_456_789)));
        assert_eq!(time(b"1.5"), Some((1, 500_000_000)));
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time(b"-3"), Some((-3, 0)));
        assert_eq!(time(b"1.1234567891"), Some((1, 123_456_789)));
        assert_eq!(time(b"1e9"), None);
        assert_eq!(time(b""), None);
    }

    #[test]
    fn contradictory_pieces_are_refused() {
        assert!(Sparse::new(100, [(0, 10), (50, 10)], 20).is_ok());
        for (size, pieces, data) in [
            (100, vec![(0, 10), (5, 10)], 20),
            (100, vec![(95, 10)], 10),
            (100, vec![(0, 10)], 11),
            (u64::MAX, vec![], 0),
            (100, vec![(u64::MAX, 2)], 2),
        ] {
            assert_eq!(Sparse::new(size, pieces, data), Err(Problem::SparseMap));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn records_come_back(key in "[a-zA-Z.]{1,20}", value in proptest::collection::vec(any::<u8>(), 1..2000)) {
            let body = key.len() + value.len() + 3;
            let length = (1..8).map(|digits| body + digits).find(|n| n.to_string().len() + body == *n).unwrap();
            let mut bytes = format!("{length} {key}=").into_bytes();
            bytes.extend(&value);
            bytes.push(b'\n');
            let records = parse(&bytes).unwrap();
            prop_assert_eq!(records.get(&key), Some(value.as_slice()));
        }
    }
}
