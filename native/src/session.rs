//! One connection.

use std::cell::RefCell;
use std::io::{self, ErrorKind, Read, Write};
use std::mem::ManuallyDrop;
use std::net::TcpStream;
use std::os::fd::{FromRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyBufferError, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus};
use rustls::{AlertDescription, Error, InvalidMessage};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::Config;
use crate::room;
use crate::tickets;
use crate::verifier::Verifier;

pyo3::import_exception!(ssl, SSLError);

/// As in Python's ssl.
const SSL_ERROR_SSL: i32 = 1;
const EIO: i32 = 5;
const RECORD_BYTES: usize = 16 * 1024;
const HEADER_BYTES: usize = 5;

thread_local! {
    /// Records on their way to a socket.
    static SEALED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What is wrong: a word for the reason, or an empty one, and a text.
type Problem = (&'static str, String);
/// Bytes used, the answer, whether the handshake is done, and what is wrong.
type Shaken<'py> = (usize, Bound<'py, PyBytes>, bool, Option<Problem>);
/// The data, how many records contained it, the answer, whether the peer has ended, and what is wrong.
type Opened<'py> = (Bound<'py, PyBytes>, usize, Bound<'py, PyBytes>, bool, Option<Problem>);

/// Bytes read, or None if there were none to read; answers that are not sent; whether the handshake is done; what is wrong; the
/// socket's error number, or 0.
type Stepped<'py> = (Option<usize>, Bound<'py, PyBytes>, bool, Option<Problem>, i32);

/// The server's end. Operations and their results are those of `typha.worker.tls_session`.
#[pyclass(module = "typha_rustls")]
pub struct Session {
    tls: UnbufferedServerConnection,
    verifier: Arc<Verifier>,
    /// See `tickets::VALID_UNTIL`. Known once the peer has shown certificates.
    valid_until: Option<u64>,
    /// Received, and not finished by rustls: the beginning of a record, or of a message of several records.
    pending: Vec<u8>,
    /// The whole records at its beginning; only kept during the handshake.
    whole_bytes: usize,
    /// Messages of rustls that go before what is sealed next.
    unsent: Vec<u8>,
    /// What sealing adds to each record; 0 if that is not known yet.
    overhead_bytes: usize,
    /// After an error nothing may be sealed or opened.
    failed: bool,
}

/// What one look of rustls at the bytes has brought.
#[derive(Default)]
struct Progress {
    answer: Vec<u8>,
    data: Vec<u8>,
    records: usize,
    ended: bool,
    error: Option<Problem>,
}

/// What a step of a handshake has brought.
#[derive(Default)]
struct Step {
    received: Option<usize>,
    unsent: Vec<u8>,
    done: bool,
    error: Option<Problem>,
    socket_error: i32,
}

/// A step of each of these handshakes: of its session, its socket, and its first record if that has been read already. Other
/// threads of Python run meanwhile.
///
/// What is read of a socket belongs to the handshake. The last answer is not sent: the caller looks at the peer first.
#[pyfunction]
pub fn take_steps<'py>(
    py: Python<'py>,
    handshakes: Vec<(Bound<'py, Session>, RawFd, PyBackedBytes)>,
    step_bytes: usize,
) -> PyResult<Vec<Stepped<'py>>> {
    let mut parts = Vec::with_capacity(handshakes.len());
    for (session, socket, first) in &handshakes {
        parts.push((session.try_borrow_mut()?, *socket, first));
    }
    let mut work: Vec<(&mut Session, RawFd, &[u8])> =
        parts.iter_mut().map(|(session, socket, first)| (&mut **session, *socket, &***first)).collect();
    let steps = py.detach(|| {
        let mut room = vec![0; step_bytes];
        work.iter_mut()
            .map(|(session, socket, first)| session.whole(|session| session.step(*socket, first, &mut room)))
            .collect::<Vec<_>>()
    });
    steps
        .into_iter()
        .map(|step| {
            let step =
                step.unwrap_or_else(|error| Step { error: Some(("DEFECT", error.to_string())), ..Step::default() });
            Ok((step.received, PyBytes::new(py, &step.unsent), step.done, step.error, step.socket_error))
        })
        .collect()
}

#[pymethods]
impl Session {
    #[new]
    fn new(config: &Config) -> PyResult<Self> {
        let tls = UnbufferedServerConnection::new(config.inner.clone())
            .map_err(|error| PyRuntimeError::new_err(error.to_string()))?;
        Ok(Self {
            tls,
            verifier: config.verifier.clone(),
            valid_until: None,
            pending: Vec::new(),
            unsent: Vec::new(),
            whole_bytes: 0,
            overhead_bytes: 0,
            failed: false,
        })
    }

    /// Goes on with the handshake; other threads of Python run meanwhile.
    fn shake<'py>(&mut self, py: Python<'py>, received: &[u8]) -> PyResult<Shaken<'py>> {
        let (used, progress) = py.detach(|| self.whole(|session| session.shake_with(received)))?;
        let done = progress.error.is_none() && !self.tls.is_handshaking();
        Ok((used, PyBytes::new(py, &progress.answer), done, progress.error))
    }

    /// Common names and URIs of the peer's certificate, in its order.
    fn names(&mut self) -> PyResult<(Vec<String>, Vec<String>)> {
        self.whole(|session| session.read_names())?
    }

    /// The records of this data. Keeps other threads of Python waiting: for 32 KiB it takes some 6 us.
    fn seal<'py>(&mut self, py: Python<'py>, data: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
        with_bytes(data, |data| self.seal_slice(py, data))
    }

    /// Seals and sends a piece at a time, until the socket is full. More than `unasked_bytes` is sealed only if the kernel says
    /// that it takes it. Returns how many bytes were sent, what is sealed and not sent, and how many bytes of the data that is.
    fn send<'py>(
        &mut self,
        py: Python<'py>,
        socket: RawFd,
        data: &Bound<'py, PyAny>,
        piece_bytes: usize,
        unasked_bytes: usize,
    ) -> PyResult<(usize, Bound<'py, PyBytes>, usize)> {
        with_bytes(data, |data| {
            let asked = if data.len() > unasked_bytes { room::bytes(socket).map(room::data_in) } else { None };
            let data = &data[..asked.map_or(data.len(), |room| room.max(unasked_bytes).min(data.len()))];
            self.whole(|session| {
                // Safety: the caller keeps it open during the call, and it is not closed here.
                let mut socket = ManuallyDrop::new(unsafe { TcpStream::from_raw_fd(socket) });
                SEALED.with_borrow_mut(|sealed| {
                    let mut sent = 0;
                    for piece in data.chunks(piece_bytes) {
                        let written = session.seal_reusing(piece, sealed)?;
                        let taken = write(&mut socket, &sealed[..written])?;
                        if taken < written {
                            return Ok((sent, PyBytes::new(py, &sealed[taken..written]), piece.len()));
                        }
                        sent += piece.len();
                    }
                    Ok((sent, PyBytes::new(py, b""), 0))
                })
            })?
        })
    }

    /// All data of the records that end in these bytes.
    fn open<'py>(&mut self, py: Python<'py>, received: &[u8]) -> PyResult<Opened<'py>> {
        let progress = self.whole(|session| session.open_with(received))?;
        let (data, answer) = (PyBytes::new(py, &progress.data), PyBytes::new(py, &progress.answer));
        Ok((data, progress.records, answer, progress.ended, progress.error))
    }

    /// The last record, which tells the peer that nothing more comes; empty if it cannot be told.
    fn end<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let last = self.whole(|session| {
            if session.failed || session.tls.is_handshaking() {
                return Vec::new();
            }
            let mut last = vec![0; 256];
            let written = match session.tls.process_tls_records(&mut session.pending).state {
                Ok(ConnectionState::WriteTraffic(mut writer)) => writer.queue_close_notify(&mut last).unwrap_or(0),
                _ => 0,
            };
            last.truncate(written);
            last
        })?;
        Ok(PyBytes::new(py, &last))
    }
}

impl Session {
    /// An operation; a panic in it is an error of this connection, and not of the process.
    fn whole<T>(&mut self, operation: impl FnOnce(&mut Self) -> T) -> PyResult<T> {
        catch_unwind(AssertUnwindSafe(|| operation(self))).map_err(|_| {
            self.failed = true;
            PyRuntimeError::new_err("a defect in rustls or in its binding")
        })
    }

    fn read_names(&self) -> PyResult<(Vec<String>, Vec<String>)> {
        let unreadable = |error: &dyn std::fmt::Display| {
            SSLError::new_err((SSL_ERROR_SSL, format!("the peer's certificate cannot be read: {error}")))
        };
        let certificates = self.tls.peer_certificates().unwrap_or_default();
        let Some(certificate) = certificates.first() else { return Ok((vec![], vec![])) };
        let (_, certificate) = X509Certificate::from_der(certificate).map_err(|error| unreadable(&error))?;
        let subject = certificate.subject();
        let common = subject.iter_common_name().map(|name| name.as_str().map(str::to_owned));
        let common = common.collect::<Result<_, _>>().map_err(|error| unreadable(&error))?;
        let alternatives = certificate.subject_alternative_name().map_err(|error| unreadable(&error))?;
        let mut uris = Vec::new();
        for name in alternatives.iter().flat_map(|found| &found.value.general_names) {
            match name {
                GeneralName::URI(uri) => uris.push((*uri).to_owned()),
                GeneralName::Invalid(..) => return Err(unreadable(&"an alternative name that cannot be read")),
                _ => {}
            }
        }
        Ok((common, uris))
    }

    /// Gives rustls a record at a time: what follows the last one of the handshake must stay in the socket.
    fn shake_with(&mut self, received: &[u8]) -> (usize, Progress) {
        let mut progress = Progress::default();
        if self.failed {
            progress.error = Some(("", "the handshake has failed".into()));
            return (received.len(), progress);
        }
        self.pending.extend_from_slice(received);
        let (mut start, mut whole) = (0, self.whole_bytes);
        while self.tls.is_handshaking() && progress.error.is_none() {
            let record = record_bytes(&self.pending[whole..]);
            whole += record.unwrap_or(0);
            self.valid_until =
                self.valid_until.or_else(|| self.tls.peer_certificates().map(|chain| self.verifier.valid_until(chain)));
            tickets::VALID_UNTIL.set(self.valid_until.unwrap_or(0));
            // Of a record that is not whole, rustls gets what there is, and says whether that can become one.
            let end = if record.is_some() { whole } else { self.pending.len() };
            start = self.process(start, end, &mut progress);
            if record.is_none() {
                break;
            }
        }
        let mut unused = 0;
        if progress.error.is_none() && !self.tls.is_handshaking() {
            unused = self.pending.len() - whole;
            self.pending.truncate(whole);
        }
        self.whole_bytes = whole.saturating_sub(start);
        self.forget(start);
        (received.len().saturating_sub(unused), progress)
    }

    fn step(&mut self, socket: RawFd, first: &[u8], room: &mut [u8]) -> Step {
        // Safety: the caller keeps it open during the call, and it is not closed here.
        let mut socket = ManuallyDrop::new(unsafe { TcpStream::from_raw_fd(socket) });
        let mut step = Step::default();
        if let Err(error) = self.step_through(&mut socket, first, room, &mut step)
            && error.kind() != ErrorKind::WouldBlock
        {
            step.socket_error = error.raw_os_error().unwrap_or(EIO);
        }
        step
    }

    fn step_through(
        &mut self,
        socket: &mut TcpStream,
        first: &[u8],
        room: &mut [u8],
        step: &mut Step,
    ) -> io::Result<()> {
        let received = if first.is_empty() {
            let count = socket.peek(room)?;
            &room[..count]
        } else {
            first
        };
        step.received = Some(received.len());
        if received.is_empty() {
            return Ok(());
        }
        let (used, progress) = self.shake_with(received);
        step.done = progress.error.is_none() && !self.tls.is_handshaking();
        step.error = progress.error;
        step.unsent = progress.answer;
        if first.is_empty() {
            step.received = Some(used);
            socket.read_exact(&mut room[..used])?;
        }
        if !step.done && !step.unsent.is_empty() {
            let taken = write(socket, &step.unsent)?;
            step.unsent.drain(..taken);
        }
        Ok(())
    }

    fn open_with(&mut self, received: &[u8]) -> Progress {
        let mut progress = Progress::default();
        if self.failed {
            progress.error = Some(("", "the connection has failed".into()));
            return progress;
        }
        self.pending.extend_from_slice(received);
        let used = self.process(0, self.pending.len(), &mut progress);
        self.forget(if progress.ended { self.pending.len() } else { used });
        progress
    }

    /// Lets rustls work on a part of the pending bytes until it needs more. Returns where the unfinished ones begin.
    fn process(&mut self, mut start: usize, end: usize, progress: &mut Progress) -> usize {
        loop {
            let UnbufferedStatus { discard, state } = self.tls.process_tls_records(&mut self.pending[start..end]);
            let goes_on = match state {
                Ok(ConnectionState::EncodeTlsData(message)) => {
                    encode(message, &mut progress.answer);
                    true
                }
                Ok(ConnectionState::TransmitTlsData(transmission)) => {
                    transmission.done();
                    true
                }
                Ok(ConnectionState::ReadTraffic(mut records)) => {
                    while let Some(record) = records.next_record() {
                        let Ok(record) = record else { break };
                        progress.data.extend_from_slice(record.payload);
                        progress.records += 1;
                    }
                    true
                }
                Ok(ConnectionState::PeerClosed) => {
                    progress.ended = true;
                    false
                }
                Ok(_) => false, // more bytes are needed
                Err(error) => {
                    progress.error = Some(self.problem(&error));
                    false
                }
            };
            start += discard;
            if !goes_on {
                break;
            }
        }
        if progress.error.is_some() {
            self.failed = true;
            while self.tls.wants_write() {
                match self.tls.process_tls_records(&mut []).state {
                    Ok(ConnectionState::EncodeTlsData(alert)) => encode(alert, &mut progress.answer),
                    _ => break,
                }
            }
        }
        start
    }

    fn problem(&self, error: &Error) -> Problem {
        let reason = match error {
            Error::AlertReceived(AlertDescription::CloseNotify) => "CLOSED",
            Error::InvalidMessage(InvalidMessage::InvalidContentType) if self.tls.protocol_version().is_none() => {
                "NOT_TLS"
            }
            _ => "",
        };
        (reason, error.to_string())
    }

    /// The first of the pending bytes are not needed any more. Most of the time this is all of them, and their memory.
    fn forget(&mut self, count: usize) {
        if count >= self.pending.len() {
            self.pending = Vec::new();
        } else {
            self.pending.drain(..count);
        }
    }

    fn seal_slice<'py>(&mut self, py: Python<'py>, data: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
        let records = data.len().div_ceil(RECORD_BYTES);
        if records == 0 {
            return Ok(PyBytes::new(py, b""));
        }
        let mut size = data.len() + records * self.overhead_bytes;
        loop {
            let mut written = Err(EncryptError::EncryptExhausted);
            let sealed = PyBytes::new_with(py, size, |room| {
                written = self.whole(|session| session.seal_into(data, room))?;
                Ok(())
            })?;
            match written {
                Ok(count) => {
                    self.overhead_bytes = (count - data.len()) / records;
                    return Ok(if count == size { sealed } else { PyBytes::new(py, &sealed.as_bytes()[..count]) });
                }
                Err(EncryptError::InsufficientSize(needed)) if needed.required_size > size => {
                    size = needed.required_size;
                }
                Err(_) => return Err(cannot_seal()),
            }
        }
    }

    fn seal_reusing(&mut self, data: &[u8], room: &mut Vec<u8>) -> PyResult<usize> {
        loop {
            match self.seal_into(data, room) {
                Ok(count) => return Ok(count),
                Err(EncryptError::InsufficientSize(needed)) if needed.required_size > room.len() => {
                    room.resize(needed.required_size, 0);
                }
                Err(_) => return Err(cannot_seal()),
            }
        }
    }

    /// Answers of rustls to what it has read, such as one to a key update, go before the data.
    fn seal_into(&mut self, data: &[u8], room: &mut [u8]) -> Result<usize, EncryptError> {
        if self.failed || self.tls.is_handshaking() {
            return Err(EncryptError::EncryptExhausted);
        }
        loop {
            match self.tls.process_tls_records(&mut self.pending).state {
                Ok(ConnectionState::EncodeTlsData(message)) => encode(message, &mut self.unsent),
                Ok(ConnectionState::TransmitTlsData(transmission)) => transmission.done(),
                Ok(ConnectionState::WriteTraffic(mut writer)) => {
                    let before = self.unsent.len();
                    let written = match room.get_mut(before..) {
                        Some(rest) => writer.encrypt(data, rest),
                        None => writer.encrypt(data, &mut []),
                    };
                    let written = written.map_err(|error| needing_more(error, before))?;
                    room[..before].copy_from_slice(&self.unsent);
                    self.unsent = Vec::new();
                    return Ok(before + written);
                }
                _ => return Err(EncryptError::EncryptExhausted),
            }
        }
    }
}

/// The bytes of a Python object. Python runs no other code meanwhile.
fn with_bytes<T>(data: &Bound<'_, PyAny>, work: impl FnOnce(&[u8]) -> PyResult<T>) -> PyResult<T> {
    if let Ok(bytes) = data.cast::<PyBytes>() {
        return work(bytes.as_bytes());
    }
    let buffer = PyBuffer::<u8>::get(data)?;
    if !buffer.is_c_contiguous() {
        return Err(PyBufferError::new_err("the data is not in one piece"));
    }
    // Safety: the buffer is in one piece, and lives until the end of this call. Nothing changes its content meanwhile, because
    // no other code of Python runs.
    work(unsafe { std::slice::from_raw_parts(buffer.buf_ptr().cast::<u8>(), buffer.len_bytes()) })
}

fn cannot_seal() -> PyErr {
    SSLError::new_err((SSL_ERROR_SSL, "nothing can be sent through this session any more"))
}

/// What the socket takes; 0 if it is full.
fn write(socket: &mut TcpStream, data: &[u8]) -> io::Result<usize> {
    loop {
        match socket.write(data) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn needing_more(error: EncryptError, more: usize) -> EncryptError {
    match error {
        EncryptError::InsufficientSize(mut needed) => {
            needed.required_size += more;
            EncryptError::InsufficientSize(needed)
        }
        other => other,
    }
}

fn encode<Data>(mut message: EncodeTlsData<'_, Data>, answer: &mut Vec<u8>) {
    let begin = answer.len();
    let written = match message.encode(&mut []) {
        Err(EncodeError::InsufficientSize(needed)) => {
            answer.resize(begin + needed.required_size, 0);
            message.encode(&mut answer[begin..]).unwrap_or(0)
        }
        _ => 0,
    };
    answer.truncate(begin + written);
}

/// The size of the first record, if all of it is there.
fn record_bytes(bytes: &[u8]) -> Option<usize> {
    let length = bytes.get(3..HEADER_BYTES)?;
    let size = HEADER_BYTES + usize::from(u16::from_be_bytes([length[0], length[1]]));
    (size <= bytes.len()).then_some(size)
}
