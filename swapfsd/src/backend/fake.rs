//! A back end with tiers that are made up, for tests of what shows and changes them.

use super::{AtStart, Backend, EvacuationReport, TierReport};
use crate::admin::{Administration, Direction, Done, Progress, Reply, Request};
use crate::buffer::BufferPool;
use crate::error::Result;
use crate::volume::Volume;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use swapfs_format::swap_header::SwapHeader;

/// Nine tiers, of which the second one is being emptied.
pub(crate) struct FakeTiers {
    pub(crate) options: String,
    pub(crate) image: String,
}

/// A volume on it.
pub(crate) fn volume(options: &str, image: &str) -> Arc<Volume> {
    let backend = FakeTiers { options: options.to_owned(), image: image.to_owned() };
    volume_on(Arc::new(backend))
}

/// A volume on some back end.
pub(crate) fn volume_on(backend: Arc<dyn Backend>) -> Arc<Volume> {
    let header = SwapHeader { slot_count: 16, uuid: uuid::Uuid::nil(), label: String::new() };
    Volume::new(backend, BufferPool::new(2, 1).unwrap(), &header).unwrap()
}

impl Backend for FakeTiers {
    fn read(&self, _: u64, pages: &mut [u8]) -> Result<()> {
        pages.fill(0);
        Ok(())
    }

    fn write(&self, _: u64, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn discard(&self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn at_start(&self) -> AtStart {
        AtStart::Empty
    }

    fn activate(&self) -> std::io::Result<()> {
        Ok(())
    }

    fn statistics(&self, report: &mut dyn FnMut(&'static str, u64)) {
        report("demotion_decompressions", 0);
    }

    fn tiers(&self, report: &mut dyn FnMut(&TierReport<'_>)) {
        for order in 0..9 {
            report(&TierReport {
                order,
                type_name: if order == 0 { "zmem" } else { "log" },
                image: if order == 0 { "" } else { &self.image },
                uuid: "",
                state: if order == 1 { "evacuating" } else { "ok" },
                capacity_bytes: u64::MAX,
                used_bytes: u64::MAX,
                live_bytes: u64::MAX,
                pages: u64::MAX,
                high_percent: 90,
                low_percent: 80,
                promote: "second",
                keep: "exclusive",
                rate_bytes: u64::MAX,
                options: &self.options,
                read_pages: u64::MAX,
                read_errors: u64::MAX,
                write_errors: u64::MAX,
                demoted_in_pages: u64::MAX,
                demoted_in_bytes: u64::MAX,
                demoted_out_pages: u64::MAX,
                promoted_out_pages: u64::MAX,
                collected_bytes: u64::MAX,
                written_bytes: u64::MAX,
                read_bytes: u64::MAX,
                age_pages: [u64::MAX; 4],
                read_p50_us: u64::MAX,
                read_p99_us: u64::from(order),
            });
        }
    }

    fn evacuation(&self) -> Option<EvacuationReport> {
        Some(EvacuationReport {
            tier: 1,
            direction: "up",
            moved_pages: 2,
            left_pages: 3,
            left_bytes: 4,
            bytes_per_s: 5,
        })
    }

    fn administration(&self) -> Option<&dyn Administration> {
        Some(self)
    }
}

impl Administration for FakeTiers {
    fn handle(
        &self,
        request: &Request,
        reply: &mut dyn FnMut(Reply) -> bool,
    ) -> std::result::Result<Reply, String> {
        match request {
            Request::Add { .. } => Ok(Reply::Done(Done { order: Some(7), ..Done::default() })),
            Request::Remove { tier: 1, direction: Direction::Up, rate_bytes: Some(10) } => {
                for left_pages in [2, 1] {
                    let progress = Progress {
                        left_bytes: left_pages * 4096,
                        moved_pages: 0,
                        left_pages,
                        bytes_per_s: 9,
                        eta_s: None,
                    };
                    assert!(reply(Reply::Progress(progress)));
                }
                Ok(Reply::Done(Done::default()))
            }
            Request::Watch => {
                // Until the client has gone.
                let progress = Progress {
                    left_bytes: 0,
                    moved_pages: 0,
                    left_pages: 0,
                    bytes_per_s: 0,
                    eta_s: None,
                };
                while reply(Reply::Progress(progress)) {
                    thread::sleep(Duration::from_millis(1));
                }
                Err("nobody hears this".to_owned())
            }
            Request::Drop | Request::Set { .. } => Ok(Reply::Done(Done::default())),
            other => Err(format!("tier: {other:?} can't be done: try something else")),
        }
    }
}
