//! The on-disk format of swapfs, and nothing else.
//!
//! Everything here works on byte slices: no file is opened, read or written. `FORMAT.md` beside
//! this crate describes every byte; `tests/format_md.rs` holds the two together.
//!
//! | module | what it owns |
//! |---|---|
//! | [`superblock`] | the 4 KiB header of an image: layout, encoding, checks |
//! | [`geometry`] | where in an image the data section and the backup superblock lie |
//! | [`types`] | the back-end types that exist, and the options each one takes |
//! | [`remote`] | where pages are elsewhere: addresses, and the options of type `remote` |
//! | [`member`] | the images that a `tier` volume stores pages in, and their options |
//! | [`options`] | `key=value,...` text into typed values |
//! | [`fault`] | the value of the `fault=` option |
//! | [`swap_header`] | the kernel's `SWAPSPACE2` header, page 0 of a volume |
//! | [`size`] | sizes in human units |
//! | [`trace`] | the file that device operations are recorded in |

pub mod fault;
pub mod geometry;
pub mod log;
pub mod member;
pub mod options;
pub mod remote;
pub mod size;
pub mod superblock;
pub mod swap_header;
pub mod trace;
pub mod types;

/// Bytes in a slot, and in the one page size that swapfs knows.
pub const PAGE_BYTES: u64 = 4096;

/// [`PAGE_BYTES`] as a length of a slice.
pub const PAGE_LEN: usize = 4096;
