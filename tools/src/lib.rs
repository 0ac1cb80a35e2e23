//! The tools of swapfs: `swapfs` itself, the mount helper and the checker.
//!
//! | module | what it owns |
//! |---|---|
//! | [`multicall`], [`cli`] | which program was called, and the command line of `swapfs` |
//! | [`up`], [`down`], [`status`], [`top`], [`upgrade`], [`demo`], [`inspect`], [`trace`], [`fsck`], [`mount`] | one command each |
//! | [`tiers`], [`tier`], [`drop`], [`resize`] | the same, for volumes over several images, and for sizes |
//! | [`volumes`] | which volumes are up: found, not remembered |
//! | [`daemon`], [`probe`], [`stats`] | the daemon: start and end it, ask it without hanging |
//! | [`loop_device`], [`swap_off`], [`image`], [`format`] | one step of `up` or `down` each |
//! | [`memory_check`], [`sizing`] | decisions on numbers, without I/O |
//! | [`procfs`], [`sys`] | the kernel's text files and system calls |

pub mod cli;
pub mod daemon;
pub mod demo;
pub mod down;
pub mod drop;
pub mod failure;
pub mod format;
pub mod fsck;
pub mod image;
pub mod inspect;
pub mod interrupt;
mod log_survey;
pub mod log_use;
pub mod loop_device;
pub mod memory_check;
pub mod mount;
pub mod multicall;
pub mod probe;
pub mod procfs;
pub mod remote;
pub mod render;
pub mod resize;
pub mod savings;
pub mod sizing;
pub mod stats;
pub mod status;
pub mod swap_off;
pub mod sys;
pub mod tier;
pub mod tiers;
pub mod top;
pub mod trace;
pub mod up;
pub mod upgrade;
pub mod volumes;
