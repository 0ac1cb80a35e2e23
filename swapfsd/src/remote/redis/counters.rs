//! What a store counts.

use super::failure::Failure;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Numbers of one store, since it was made.
        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $($(#[$doc])* pub(super) $name: AtomicU64,)*
        }

        impl Counters {
            /// Tells each number by its name.
            pub(super) fn report(&self, report: &mut dyn FnMut(&'static str, u64)) {
                $(report(concat!("redis_", stringify!($name)), self.$name.load(Ordering::Relaxed));)*
            }
        }
    };
}

counters! {
    /// Calls of put, get and remove.
    requests,
    /// Time spent in them.
    request_us,
    /// Small requests to get objects that travelled with others.
    carried_requests,
    /// Objects that servers acknowledged.
    put_objects,
    /// Bytes of these.
    put_bytes,
    /// Objects that servers answered.
    got_objects,
    /// Bytes of these.
    got_bytes,
    /// Objects that were asked for, and not there.
    missing_objects,
    /// Objects whose removal servers acknowledged.
    removed_objects,
    /// Connections made.
    connects,
    /// Connections given up after something went wrong on them.
    lost_connections,
    /// Attempts to connect that failed.
    failed_connects,
    /// Attempts of a request that were made again.
    retries,
    /// Objects that a cluster kept elsewhere than we thought.
    redirects,
    /// Requests that failed since their deadline passed.
    errors_timed_out,
    /// Requests that failed since no connection could be made or kept.
    errors_connection,
    /// Requests that failed since a server has no room.
    errors_no_room,
    /// Requests that failed since a server does not let us.
    errors_access,
    /// Requests that failed since a server answered what makes no sense.
    errors_protocol,
}

/// One more.
pub(super) fn count(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

impl Counters {
    /// A request failed.
    pub(super) fn failed(&self, failure: &Failure) {
        let counter = match failure.errno {
            libc::ETIMEDOUT | libc::EAGAIN => &self.errors_timed_out,
            libc::ENOSPC => &self.errors_no_room,
            libc::EACCES => &self.errors_access,
            libc::EPROTO => &self.errors_protocol,
            _ => &self.errors_connection,
        };
        count(counter, 1);
    }
}
