//! Where an image lies in memory, and what is loaded there.

/// Bytes of physical memory that an image may take. It starts at a multiple of this.
pub const SLOT_SIZE: usize = 2 << 20;

/// The highest layout of the bridge between two images (`docs/live-update.md`) that is known here.
pub const BRIDGE_LAYOUT: u32 = if cfg!(feature = "bridge-1") { 1 } else { 3 };

/// A part of an image to be loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment<'a> {
    /// Offset from the start of the slot.
    pub offset: usize,
    /// What the file has of it.
    pub bytes: &'a [u8],
}

/// Parts of an image at most.
pub const SEGMENTS_MAX: usize = 16;

/// Another image, as far as the runtime has to know it. Whether it is a fit one is for others to say.
#[derive(Clone, Debug)]
pub struct NewImage<'a> {
    size: usize,
    entry: usize,
    segments: heapless::Vec<Segment<'a>, SEGMENTS_MAX>,
    bridge_layout: u32,
}

impl<'a> NewImage<'a> {
    /// An image that takes `size` bytes of its slot, most of them zero but for its segments. Its 32-bit entry is at the
    /// offset `entry`, and it knows the bridge up to this layout. `None` if the entry or a segment lies outside, or there are
    /// more than [`SEGMENTS_MAX`].
    #[must_use]
    pub fn new(
        size: usize,
        entry: usize,
        segments: impl IntoIterator<Item = Segment<'a>>,
        bridge_layout: u32,
    ) -> Option<Self> {
        if size > SLOT_SIZE || entry >= size {
            return None;
        }
        let mut list = heapless::Vec::new();
        for segment in segments {
            let end = segment.offset.checked_add(segment.bytes.len())?;
            if end > size {
                return None;
            }
            list.push(segment).ok()?;
        }
        Some(Self { size, entry, segments: list, bridge_layout })
    }

    /// Bytes that it takes in memory, from the start of its slot.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Offset of the 32-bit entry from the start of its slot.
    #[must_use]
    pub fn entry(&self) -> usize {
        self.entry
    }

    /// The highest layout of the bridge that the image knows.
    #[must_use]
    pub fn bridge_layout(&self) -> u32 {
        self.bridge_layout
    }

    /// What has to be loaded; all else in the slot is zero.
    #[must_use]
    pub fn segments(&self) -> &[Segment<'a>] {
        &self.segments
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn what_lies_outside_the_slot_is_refused() {
        let part = |offset| Segment { offset, bytes: &[1, 2, 3] };
        let image = NewImage::new(8, 4, [part(0), part(5)], 3).unwrap();
        assert_eq!((image.size(), image.entry(), image.bridge_layout()), (8, 4, 3));
        assert_eq!(image.segments(), [part(0), part(5)]);
        assert!(NewImage::new(8, 4, [part(6)], 3).is_none());
        assert!(NewImage::new(8, 4, [part(usize::MAX)], 3).is_none());
        assert!(NewImage::new(8, 8, [], 3).is_none());
        assert!(NewImage::new(SLOT_SIZE, SLOT_SIZE - 1, [], 3).is_some());
        assert!(NewImage::new(SLOT_SIZE + 1, 0, [], 3).is_none());
        assert!(NewImage::new(8, 0, vec![part(0); SEGMENTS_MAX], 3).is_some());
        assert!(NewImage::new(8, 0, vec![part(0); SEGMENTS_MAX + 1], 3).is_none());
    }
}
