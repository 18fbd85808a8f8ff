//! What is known of small data of a journal, as most fields have the same few values in all entries.

/// Values up to this are kept: most fields have the same few values in all entries.
pub(super) const SMALL: usize = 256;

/// What small data came to as fields, by where it lies. One that is read takes the place of another: whether it is still
/// there decides how long it takes, and nothing else.
#[derive(Default)]
pub(super) struct Values {
    places: Vec<(u64, Vec<u8>)>,
    /// How many are kept, once there are any.
    most: usize,
}

impl Values {
    pub(super) fn share(&mut self, most: usize) {
        if most != self.most {
            *self = Self {
                places: Vec::new(),
                most,
            };
        }
    }

    /// Frees them.
    pub(super) fn forget(&mut self) {
        self.places = Vec::new();
    }

    /// Objects begin at multiples of 8, and come in the order of the file.
    fn place(&self, offset: u64) -> usize {
        let mixed = (offset / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        usize::try_from(mixed).unwrap_or(0) & self.places.len().wrapping_sub(1)
    }

    pub(super) fn get(&self, offset: u64) -> Option<&[u8]> {
        // Without any, there is no such place.
        let (known, field) = self.places.get(self.place(offset))?;
        (*known == offset && offset != 0).then_some(field)
    }

    pub(super) fn keep(&mut self, offset: u64, field: &[u8]) {
        if self.places.is_empty() {
            self.places = vec![(0, Vec::new()); self.most.next_power_of_two()];
        }
        let place = self.place(offset);
        if let Some(there) = self.places.get_mut(place).filter(|_| field.len() <= SMALL) {
            there.0 = offset;
            there.1.clear();
            there.1.extend_from_slice(field);
        }
    }
}
