//! From a new connection to an export that is open: the fixed newstyle handshake. Runs on the
//! connector's thread alone, and ends by its deadline whatever the server does.

use super::NbdSettings;
use super::protocol::{Kind, request};
use crate::sys::stream::{self, READABLE, WRITABLE};
use std::fmt;
use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};
use swapfs_format::PAGE_BYTES;
use swapfs_format::remote::NbdPlace;

const GREETING: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// What stands in place of [`OPTION_MAGIC`] in the old handshake.
const OLD_STYLE_MAGIC: u64 = 0x4202_8186_1253;

const FLAG_FIXED_NEWSTYLE: u16 = 1;
const FLAG_NO_ZEROES: u16 = 2;

const OPTION_EXPORT_NAME: u32 = 1;
const OPTION_ABORT: u32 = 2;
const OPTION_LIST: u32 = 3;
const OPTION_GO: u32 = 7;
const OPTION_STRUCTURED_REPLY: u32 = 8;

const REPLY_ACK: u32 = 1;
const REPLY_SERVER: u32 = 2;
const REPLY_INFO: u32 = 3;
const REPLY_ERROR_BIT: u32 = 1 << 31;
const REPLY_UNSUPPORTED: u32 = REPLY_ERROR_BIT | 1;
const REPLY_TLS_REQUIRED: u32 = REPLY_ERROR_BIT | 5;
const REPLY_UNKNOWN: u32 = REPLY_ERROR_BIT | 6;

const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

const EXPORT_HAS_FLAGS: u16 = 1;
const EXPORT_READ_ONLY: u16 = 1 << 1;
const EXPORT_CAN_FLUSH: u16 = 1 << 2;
const EXPORT_CAN_TRIM: u16 = 1 << 5;
const EXPORT_CAN_MULTI_CONN: u16 = 1 << 8;

/// The largest reply to an option that is read; names and texts have 4096 bytes at most.
const REPLY_BYTES_AT_MOST: usize = 16 << 10;
/// So many replies to one option at most.
const REPLIES_AT_MOST: usize = 4096;
/// So many names of exports stand in an error's text.
const NAMES_AT_MOST: usize = 16;
/// The longest name that the protocol allows.
const NAME_BYTES_AT_MOST: usize = 4096;
/// No request is larger, whatever the server allows.
const REQUEST_BYTES_AT_MOST: u32 = 32 << 20;

/// What a server asks of requests, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSizes {
    /// Offsets and lengths are multiples of this: never above 4096.
    pub minimum_bytes: u32,
    /// What serves best.
    pub preferred_bytes: u32,
    /// The largest request; larger ones are split.
    pub maximum_bytes: u32,
}

impl BlockSizes {
    /// Those of a server that says nothing.
    pub(super) const DEFAULT: BlockSizes = BlockSizes {
        minimum_bytes: 1,
        preferred_bytes: 4096,
        maximum_bytes: REQUEST_BYTES_AT_MOST,
    };
}

/// An export that has been opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Export {
    pub(super) size_bytes: u64,
    pub(super) sizes: BlockSizes,
    /// Replies come in chunks.
    pub(super) structured: bool,
    pub(super) flags: ExportFlags,
}

/// What an export can do: the protocol's transmission flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ExportFlags(pub(super) u16);

impl ExportFlags {
    fn has(self, flag: u16) -> bool {
        self.0 & EXPORT_HAS_FLAGS != 0 && self.0 & flag != 0
    }

    pub(super) fn is_read_only(self) -> bool {
        self.has(EXPORT_READ_ONLY)
    }

    pub(super) fn can_flush(self) -> bool {
        self.has(EXPORT_CAN_FLUSH)
    }

    pub(super) fn can_trim(self) -> bool {
        self.has(EXPORT_CAN_TRIM) && !self.is_read_only()
    }

    pub(super) fn takes_several_connections(self) -> bool {
        self.has(EXPORT_CAN_MULTI_CONN)
    }
}

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) errno: i32,
    pub(super) text: String,
}

impl Refusal {
    pub(super) fn new(errno: i32, text: impl Into<String>) -> Refusal {
        Refusal { errno, text: text.into() }
    }

    pub(super) fn os(errno: i32, doing: &str) -> Refusal {
        Refusal::new(errno, format!("{doing}: {}", io::Error::from_raw_os_error(errno)))
    }

    fn from_io(error: &io::Error, doing: &str) -> Refusal {
        let errno = error.raw_os_error().unwrap_or(match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => libc::ETIMEDOUT,
            _ => libc::EHOSTUNREACH,
        });
        Refusal::new(errno, format!("{doing}: {error}"))
    }

    fn nonsense(text: &str) -> Refusal {
        Refusal::new(libc::EPROTO, text)
    }

    /// As an error of the system's, with `place` in its text.
    pub(super) fn to_io(&self, place: &impl fmt::Display) -> io::Error {
        let kind = io::Error::from_raw_os_error(self.errno).kind();
        io::Error::new(kind, format!("{place}: {}", self.text))
    }
}

/// Connects and opens the export.
pub(super) fn connect(
    settings: &NbdSettings,
    deadline: Instant,
) -> Result<(OwnedFd, Export), Refusal> {
    let socket = match &settings.place {
        NbdPlace::Tcp(host, port) => connect_tcp(host, *port, settings.deadline, deadline)?,
        NbdPlace::Unix(path) => stream::connect_unix(Path::new(path))
            .map_err(|error| Refusal::from_io(&error, "connecting"))?,
    };
    let export = Dialogue { socket: &socket, deadline }.open(&settings.export)?;
    Ok((socket, export))
}

fn connect_tcp(
    host: &str,
    port: u16,
    patience: Duration,
    deadline: Instant,
) -> Result<OwnedFd, Refusal> {
    let addresses = (host, port)
        .to_socket_addrs()
        .map_err(|error| Refusal::from_io(&error, "looking the host up"))?;
    let mut refusal = Refusal::new(libc::EHOSTUNREACH, "the host has no address");
    for address in addresses {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Refusal::os(libc::ETIMEDOUT, "connecting"));
        }
        let connected = TcpStream::connect_timeout(&address, left).and_then(|socket| {
            socket.set_nodelay(true)?;
            socket.set_nonblocking(true)?;
            let socket = OwnedFd::from(socket);
            notice_dead_peers(&socket)?;
            give_up_after(&socket, patience)?;
            Ok(socket)
        });
        match connected {
            Ok(socket) => return Ok(socket),
            Err(error) => refusal = Refusal::from_io(&error, "connecting"),
        }
    }
    Err(refusal)
}

/// So that a peer that is gone without a word is noticed while nothing is asked of it.
fn notice_dead_peers(socket: &OwnedFd) -> io::Result<()> {
    let socket = socket.as_fd();
    stream::set_option(socket, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)?;
    stream::set_option(socket, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 10)?;
    stream::set_option(socket, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, 5)?;
    stream::set_option(socket, libc::IPPROTO_TCP, libc::TCP_KEEPCNT, 3)
}

/// So that the kernel does not go on sending a request again whose call has ended long ago.
fn give_up_after(socket: &OwnedFd, patience: Duration) -> io::Result<()> {
    // 0 would leave it to the system.
    let patience_ms = patience.as_millis().clamp(1, i32::MAX as u128) as i32;
    stream::set_option(socket.as_fd(), libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, patience_ms)
}

/// A reply to an option.
struct Reply {
    kind: u32,
    data: Vec<u8>,
}

impl Reply {
    fn is_error(&self) -> bool {
        self.kind & REPLY_ERROR_BIT != 0
    }

    /// The server's own words, fit to be shown.
    fn text(&self) -> String {
        printable(&self.data)
    }
}

fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(256)]);
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

struct Dialogue<'a> {
    socket: &'a OwnedFd,
    deadline: Instant,
}

impl Dialogue<'_> {
    fn wait(&self, events: i16) -> Result<(), Refusal> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Refusal::os(libc::ETIMEDOUT, "waiting for the server's greeting"));
        }
        stream::wait_for(self.socket, events, left);
        Ok(())
    }

    fn receive(&self, mut buffer: &mut [u8]) -> Result<(), Refusal> {
        while !buffer.is_empty() {
            self.wait(READABLE)?;
            match stream::receive(self.socket.as_fd(), buffer, &mut []) {
                Ok(0) => return Err(Refusal::new(libc::ECONNRESET, "the server has hung up")),
                Ok(count) => buffer = &mut buffer[count..],
                Err(libc::EAGAIN) => {}
                Err(errno) => return Err(Refusal::os(errno, "receiving")),
            }
        }
        Ok(())
    }

    fn send(&self, mut bytes: &[u8]) -> Result<(), Refusal> {
        while !bytes.is_empty() {
            match stream::send(self.socket.as_fd(), bytes, &[]) {
                Ok(count) => bytes = &bytes[count..],
                Err(libc::EAGAIN) => self.wait(WRITABLE)?,
                Err(errno) => return Err(Refusal::os(errno, "sending")),
            }
        }
        Ok(())
    }

    fn number<const N: usize>(&self) -> Result<[u8; N], Refusal> {
        let mut bytes = [0; N];
        self.receive(&mut bytes)?;
        Ok(bytes)
    }

    fn ask(&self, option: u32, data: &[u8]) -> Result<(), Refusal> {
        let mut bytes = Vec::with_capacity(16 + data.len());
        bytes.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        bytes.extend_from_slice(&option.to_be_bytes());
        bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
        bytes.extend_from_slice(data);
        self.send(&bytes)
    }

    fn reply(&self, option: u32) -> Result<Reply, Refusal> {
        let magic = u64::from_be_bytes(self.number()?);
        let asked = u32::from_be_bytes(self.number()?);
        let kind = u32::from_be_bytes(self.number()?);
        let length = u32::from_be_bytes(self.number()?) as usize;
        if magic != OPTION_REPLY_MAGIC || asked != option || length > REPLY_BYTES_AT_MOST {
            return Err(Refusal::nonsense("the server answers an option with nonsense"));
        }
        let mut data = vec![0; length];
        self.receive(&mut data)?;
        Ok(Reply { kind, data })
    }

    /// The whole handshake.
    fn open(&self, name: &str) -> Result<Export, Refusal> {
        if name.len() > NAME_BYTES_AT_MOST {
            return Err(Refusal::new(libc::ENAMETOOLONG, "the export's name is too long"));
        }
        if u64::from_be_bytes(self.number()?) != GREETING {
            return Err(Refusal::nonsense("what listens there is no NBD server"));
        }
        match u64::from_be_bytes(self.number()?) {
            OPTION_MAGIC => {}
            OLD_STYLE_MAGIC => {
                return Err(Refusal::nonsense("the server speaks the old handshake only"));
            }
            _ => return Err(Refusal::nonsense("what listens there is no NBD server")),
        }
        let flags = u16::from_be_bytes(self.number()?);
        if flags & FLAG_FIXED_NEWSTYLE == 0 {
            return Err(Refusal::nonsense("the server lacks the fixed newstyle handshake"));
        }
        let flags = flags & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES);
        self.send(&u32::from(flags).to_be_bytes())?;
        self.ask(OPTION_STRUCTURED_REPLY, &[])?;
        let reply = self.reply(OPTION_STRUCTURED_REPLY)?;
        if reply.kind == REPLY_TLS_REQUIRED {
            return Err(self.leave(tls_required()));
        }
        let structured = reply.kind == REPLY_ACK;
        let zeroes = flags & FLAG_NO_ZEROES == 0;
        let export = self.go(name, structured, zeroes)?;
        check(export).map_err(|refusal| self.disconnect(refusal))
    }

    fn go(&self, name: &str, structured: bool, zeroes: bool) -> Result<Export, Refusal> {
        let mut data = Vec::with_capacity(name.len() + 8);
        data.extend_from_slice(&(name.len() as u32).to_be_bytes());
        data.extend_from_slice(name.as_bytes());
        data.extend_from_slice(&1u16.to_be_bytes());
        data.extend_from_slice(&INFO_BLOCK_SIZE.to_be_bytes());
        self.ask(OPTION_GO, &data)?;
        let mut sizes = BlockSizes::DEFAULT;
        let mut export = None;
        for _ in 0..REPLIES_AT_MOST {
            let reply = self.reply(OPTION_GO)?;
            match reply.kind {
                REPLY_ACK => {
                    let (size_bytes, flags) = export
                        .ok_or_else(|| Refusal::nonsense("the server does not say the size"))?;
                    return Ok(Export { size_bytes, sizes, structured, flags });
                }
                REPLY_INFO => match info(&reply.data)? {
                    Info::Export(size_bytes, flags) => export = Some((size_bytes, flags)),
                    Info::Sizes(said) => sizes = said,
                    Info::Other => {}
                },
                REPLY_UNSUPPORTED => return self.export_name(name, structured, zeroes),
                REPLY_UNKNOWN => return Err(self.leave(self.unknown(name))),
                REPLY_TLS_REQUIRED => return Err(self.leave(tls_required())),
                _ if reply.is_error() => {
                    let text = format!("the server refuses export '{name}': {}", reply.text());
                    return Err(self.leave(Refusal::new(libc::EACCES, text)));
                }
                _ => return Err(Refusal::nonsense("the server answers GO with nonsense")),
            }
        }
        Err(Refusal::nonsense("the server does not come to an end"))
    }

    /// For servers without GO: these just hang up if there is no such export.
    fn export_name(&self, name: &str, structured: bool, zeroes: bool) -> Result<Export, Refusal> {
        self.ask(OPTION_EXPORT_NAME, name.as_bytes())?;
        let size_bytes = u64::from_be_bytes(self.number()?);
        let flags = ExportFlags(u16::from_be_bytes(self.number()?));
        if zeroes {
            self.receive(&mut [0; 124])?;
        }
        Ok(Export { size_bytes, sizes: BlockSizes::DEFAULT, structured, flags })
    }

    /// What there is in place of an export that there isn't.
    fn unknown(&self, name: &str) -> Refusal {
        let there = match self.list() {
            Ok(names) if names.is_empty() => "it lists none".to_owned(),
            Ok(names) => format!("there are: {}", names.join(", ")),
            Err(_) => "it does not say which it has".to_owned(),
        };
        Refusal::new(libc::ENOENT, format!("the server has no export '{name}'; {there}"))
    }

    fn list(&self) -> Result<Vec<String>, Refusal> {
        self.ask(OPTION_LIST, &[])?;
        let mut names = Vec::new();
        for _ in 0..REPLIES_AT_MOST {
            let reply = self.reply(OPTION_LIST)?;
            match reply.kind {
                REPLY_ACK => return Ok(names),
                REPLY_SERVER if names.len() < NAMES_AT_MOST => {
                    let length = reply.data.first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
                    let rest = reply.data.get(4..).unwrap_or_default();
                    let name = rest.get(..length.unwrap_or(0) as usize).unwrap_or_default();
                    names.push(format!("'{}'", printable(name)));
                }
                REPLY_SERVER => {}
                _ => return Err(Refusal::new(libc::EACCES, reply.text())),
            }
        }
        Ok(names)
    }

    /// Tells the server that nothing comes of it; it need not answer.
    fn leave(&self, refusal: Refusal) -> Refusal {
        let _ = self.ask(OPTION_ABORT, &[]);
        refusal
    }

    /// As [`Dialogue::leave`], where the export is open already.
    fn disconnect(&self, refusal: Refusal) -> Refusal {
        let _ = self.send(&request(Kind::Disconnect, 0, 0, 0));
        refusal
    }
}

fn tls_required() -> Refusal {
    let text =
        "the server wants TLS, which is not supported for NBD: use a unix socket or a tunnel";
    Refusal::new(libc::EACCES, text)
}

enum Info {
    Export(u64, ExportFlags),
    Sizes(BlockSizes),
    Other,
}

fn info(data: &[u8]) -> Result<Info, Refusal> {
    let short = || Refusal::nonsense("the server's information is too short");
    let u32_at = |at: usize| {
        let bytes = data.get(at..).and_then(|rest| rest.first_chunk());
        bytes.map(|bytes| u32::from_be_bytes(*bytes)).ok_or_else(short)
    };
    let kind = data.first_chunk().map(|bytes| u16::from_be_bytes(*bytes)).ok_or_else(short)?;
    match kind {
        INFO_EXPORT => {
            let size = (u64::from(u32_at(2)?) << 32) | u64::from(u32_at(6)?);
            let flags = data.get(10..).and_then(|rest| rest.first_chunk()).ok_or_else(short)?;
            Ok(Info::Export(size, ExportFlags(u16::from_be_bytes(*flags))))
        }
        INFO_BLOCK_SIZE => Ok(Info::Sizes(BlockSizes {
            minimum_bytes: u32_at(2)?,
            preferred_bytes: u32_at(6)?,
            maximum_bytes: u32_at(10)?,
        })),
        _ => Ok(Info::Other),
    }
}

/// Whether we can work with it; makes the sizes what requests can go by.
fn check(mut export: Export) -> Result<Export, Refusal> {
    let page_bytes = PAGE_BYTES as u32;
    let sizes = &mut export.sizes;
    if export.size_bytes > i64::MAX as u64 {
        return Err(Refusal::nonsense("the server says a size that can't be"));
    }
    let minimum = sizes.minimum_bytes;
    if minimum > page_bytes {
        let text = format!("the server's smallest block is {minimum} bytes: 4096 is the most");
        return Err(Refusal::new(libc::EINVAL, text));
    }
    if !minimum.is_power_of_two() || sizes.maximum_bytes < page_bytes {
        let text = format!("the server's block sizes make no sense or are too small: {sizes:?}");
        return Err(Refusal::new(libc::EPROTO, text));
    }
    sizes.maximum_bytes = sizes.maximum_bytes.min(REQUEST_BYTES_AT_MOST) / page_bytes * page_bytes;
    sizes.preferred_bytes = sizes.preferred_bytes.clamp(minimum, sizes.maximum_bytes);
    Ok(export)
}
