//! `swapfs remote`: what volumes have left on servers elsewhere.

pub mod gc;
