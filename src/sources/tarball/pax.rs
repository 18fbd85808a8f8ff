//! Extended headers of pax, see pax(1p), and the lists of sparse pieces that GNU tar keeps in them.

use super::Problem;

/// The records of an extended header, in their order. Values may hold any byte, newlines included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Records(Vec<(Vec<u8>, Vec<u8>)>);

impl Records {
    /// Parses records of the form `LENGTH KEY=VALUE\n`.
    pub(super) fn parse(mut bytes: &[u8]) -> Result<Self, Problem> {
        const BAD: Problem = Problem::BadField("extended header");
        let mut records = Vec::new();
        // Some writers pad with zeros.
        while bytes.first().is_some_and(|first| *first != 0) {
            let space = bytes.iter().take(20).position(|byte| *byte == b' ').ok_or(BAD)?;
            let length = usize::try_from(decimal(&bytes[..space]).ok_or(BAD)?).map_err(|_| BAD)?;
            let record = bytes.get(space + 1..length).ok_or(BAD)?;
            let [record @ .., b'\n'] = record else { return Err(BAD) };
            let equals = record.iter().position(|byte| *byte == b'=').ok_or(BAD)?;
            records.push((record[..equals].to_vec(), record[equals + 1..].to_vec()));
            bytes = &bytes[length..];
        }
        Ok(Self(records))
    }

    /// Adds records that come later and therefore win.
    pub(super) fn extend(&mut self, later: Self) {
        self.0.extend(later.0);
    }

    /// The last value of a key; an empty one means as if it had never been given.
    pub(super) fn get(&self, key: &str) -> Option<&[u8]> {
        let found = self.0.iter().rev().find(|(name, _)| name == key.as_bytes());
        found
            .map(|(_, value)| value.as_slice())
            .filter(|value| !value.is_empty())
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

    /// All records in their order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0.iter().map(|(key, value)| (key.as_slice(), value.as_slice()))
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
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
        for (key, value) in records.iter() {
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
            assert_eq!(Records::parse(bad), Err(Problem::BadField("extended header")));
        }
        let records = Records::parse(b"12 path=a\nb\n8 x=y=z\n5 e=\n\0\0").unwrap();
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
            let _ = Records::parse(&bytes);
        }

        #[test]
        fn records_come_back(key in "[a-zA-Z.]{1,20}", value in proptest::collection::vec(any::<u8>(), 1..2000)) {
            let body = key.len() + value.len() + 3;
            let length = (1..8).map(|digits| body + digits).find(|n| n.to_string().len() + body == *n).unwrap();
            let mut bytes = format!("{length} {key}=").into_bytes();
            bytes.extend(&value);
            bytes.push(b'\n');
            let records = Records::parse(&bytes).unwrap();
            prop_assert_eq!(records.get(&key), Some(value.as_slice()));
        }
    }
}
