//! Our connections as the crate's cluster client takes them.
//!
//! The client makes connections, asks who has which slots, and follows redirects; each of its
//! calls is one of ours, with a deadline. What it calls has no room for a context, so the context
//! is the thread's, for the time of a call.

use super::dial::Dialer;
use super::failure::Failure;
use super::node::Node;
use super::slots::{Address, Slots};
use crate::sync::Mutex;
use crate::sys::process::catch_panic;
use redis::cluster::Connect;
use redis::{
    Cmd, ConnectionAddr, ConnectionLike, ErrorKind, IntoConnectionInfo, RedisError, RedisResult,
    Value,
};
use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the connections of the thread's current call go by.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) dialer: Arc<Dialer>,
    pub(super) until: Instant,
    /// Whether a name server may be asked.
    pub(super) may_ask: bool,
    /// Connections that were made meanwhile.
    pub(super) made: Vec<Handle>,
    /// Who has which slots, if that was asked meanwhile.
    pub(super) slots: Option<Slots>,
    /// The connection that was used last.
    pub(super) last: Option<Handle>,
    /// What went wrong last.
    pub(super) failure: Option<Failure>,
}

thread_local! {
    static CONTEXT: RefCell<Option<Context>> = const { RefCell::new(None) };
}

/// Calls the crate with a context, and gives it back. A panic of the crate is a failure.
pub(super) fn call<R>(context: Context, what: impl FnOnce() -> R) -> (Option<R>, Context) {
    let dialer = Arc::clone(&context.dialer);
    let until = context.until;
    CONTEXT.set(Some(context));
    let result = catch_panic(what);
    let context = CONTEXT.take().unwrap_or_else(|| Context::new(dialer, until, false));
    (result, context)
}

impl Context {
    pub(super) fn new(dialer: Arc<Dialer>, until: Instant, may_ask: bool) -> Context {
        let made = Vec::new();
        Context { dialer, until, may_ask, made, slots: None, last: None, failure: None }
    }
}

/// A connection that both the crate's client and we have.
#[derive(Debug, Clone)]
pub(super) struct Handle {
    pub(super) address: Address,
    pub(super) node: Arc<Mutex<Node>>,
}

impl Handle {
    fn request(&self, command: &[u8], slots: bool) -> RedisResult<Value> {
        let (until, step) = CONTEXT
            .with_borrow_mut(|context| {
                let context = context.as_mut()?;
                context.last = Some(self.clone());
                Some((context.until, context.dialer.step))
            })
            .ok_or_else(no_context)?;
        // One node that hangs must not take all the time that there is.
        let until = until.min(Instant::now() + step);
        let answered = self.node.lock().packed(command, until);
        let read = answered.and_then(|value| match slots && !is_error(&value) {
            true => Slots::read(&value, &self.address.0).map(|slots| (value, Some(slots))),
            false => Ok((value, None)),
        });
        CONTEXT.with_borrow_mut(|context| match (read, context.as_mut()) {
            (_, None) => Err(no_context()),
            (Ok((value, slots)), Some(context)) => {
                if let Value::ServerError(error) = &value {
                    let text = format!("{} {}", error.code(), error.details().unwrap_or(""));
                    context.failure = Some(super::failure::answered(text.as_bytes()));
                }
                if slots.is_some() {
                    context.slots = slots;
                }
                Ok(value)
            }
            (Err(failure), Some(context)) => Err(keep(context, failure)),
        })
    }
}

fn is_error(value: &Value) -> bool {
    matches!(value, Value::ServerError(_))
}

fn no_context() -> RedisError {
    RedisError::from((ErrorKind::Client, "a connection is used outside of a request"))
}

/// Keeps a failure for us, and makes it one of the crate's kinds, by which it decides what to do.
fn keep(context: &mut Context, failure: Failure) -> RedisError {
    let kind = match failure.errno {
        // Not to be tried again at once: a node that hangs would take the time of all others.
        libc::ETIMEDOUT => io::ErrorKind::PermissionDenied,
        libc::ECONNREFUSED => io::ErrorKind::ConnectionRefused,
        libc::EPROTO | libc::EACCES => io::ErrorKind::InvalidData,
        _ => io::ErrorKind::NotConnected,
    };
    let error = io::Error::new(kind, failure.text.clone());
    context.failure = Some(failure);
    error.into()
}

impl Connect for Handle {
    fn connect<T: IntoConnectionInfo>(info: T, _: Option<Duration>) -> RedisResult<Handle> {
        let info = info.into_connection_info()?;
        let ConnectionAddr::Tcp(host, port) = info.addr() else {
            return Err(RedisError::from((ErrorKind::InvalidClientConfig, "no such address")));
        };
        let address = (host.clone(), *port);
        let (dialer, until, may_ask) = CONTEXT
            .with_borrow(|context| {
                let context = context.as_ref()?;
                Some((Arc::clone(&context.dialer), context.until, context.may_ask))
            })
            .ok_or_else(no_context)?;
        let opened = dialer.open(&address.0, address.1, until, may_ask);
        CONTEXT.with_borrow_mut(|context| match (opened, context.as_mut()) {
            (_, None) => Err(no_context()),
            (Ok(node), Some(context)) => {
                let handle = Handle { address, node: Arc::new(Mutex::new(node)) };
                context.made.push(handle.clone());
                Ok(handle)
            }
            (Err(failure), Some(context)) => Err(keep(context, failure)),
        })
    }

    fn send_packed_command(&mut self, _: &[u8]) -> RedisResult<()> {
        Err(RedisError::from((ErrorKind::Client, "commands are sent with their replies only")))
    }

    fn set_write_timeout(&self, _: Option<Duration>) -> RedisResult<()> {
        Ok(())
    }

    fn set_read_timeout(&self, _: Option<Duration>) -> RedisResult<()> {
        Ok(())
    }

    fn recv_response(&mut self) -> RedisResult<Value> {
        Err(RedisError::from((ErrorKind::Client, "replies are read with their commands only")))
    }
}

impl ConnectionLike for Handle {
    fn req_packed_command(&mut self, command: &[u8]) -> RedisResult<Value> {
        self.request(command, false)
    }

    fn req_packed_commands(&mut self, _: &[u8], _: usize, _: usize) -> RedisResult<Vec<Value>> {
        Err(RedisError::from((ErrorKind::Client, "commands are sent one by one here")))
    }

    fn req_command(&mut self, command: &Cmd) -> RedisResult<Value> {
        let packed = command.get_packed_command();
        let slots = packed.starts_with(b"*2\r\n$7\r\nCLUSTER\r\n$5\r\nSLOTS\r\n");
        self.request(&packed, slots)
    }

    fn get_db(&self) -> i64 {
        0
    }

    fn check_connection(&mut self) -> bool {
        self.req_command(&redis::cmd("PING")).is_ok()
    }

    fn is_open(&self) -> bool {
        self.node.lock().is_open()
    }
}
