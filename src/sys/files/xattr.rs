//! Extended attributes, see xattr(7).
