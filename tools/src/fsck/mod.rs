//! `fsck.swapfs`: checks an image, and repairs what can be repaired without guessing.
//!
//! [`survey`] only looks; it says of each problem which write would end it. [`repair`] decides
//! which of these are made, and makes them. What the pages of a volume hold means nothing
//! once the area is swapped off; only of a log, whose segments a mount has to read, every checksum
//! is tested.
//!
//! | module | what it owns |
//! |---|---|
//! | [`survey`] | which copy of the superblock is believed, and what is wrong on the image |
//! | `fields` | what a superblock that decodes can still say wrongly |
//! | `log` | what is wrong in the log of a volume of type `log` |
//! | `members` | the members of a `tier` volume, and what a member says of itself |
//! | `remote` | stubs of what is on servers elsewhere, and the exports that they stand for |
//! | [`repair`] | one run over an image: look, repair, look again |
//! | [`report`] | what is said, as text and as JSON, and the exit status |

mod cli;
mod fields;
pub mod log;
mod members;
mod remote;
pub mod repair;
pub mod report;
pub mod survey;

pub use cli::main;
pub(crate) use repair::refused;

#[cfg(test)]
mod log_tests;
#[cfg(test)]
mod member_tests;
#[cfg(test)]
mod tests;
