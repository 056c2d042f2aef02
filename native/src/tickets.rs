//! Tickets of sessions that a client may resume: rustls', and the time until which the certificates in them are valid.
//!
//! rustls looks at no certificate again when a session is resumed. A ticket that is too old is as none: the handshake is a full
//! one, and the client shows the certificate that it has now.

use std::cell::Cell;
use std::sync::Arc;

use rustls::Error;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::UnixTime;
use rustls::server::ProducesTickets;

const TIME_BYTES: usize = 8;

thread_local! {
    /// Until when the peer's certificates are valid, in seconds since 1970, of the session that rustls works on. 0 if it has
    /// shown none yet.
    pub static VALID_UNTIL: Cell<u64> = const { Cell::new(0) };
}

/// Keys are rustls' affair: it makes new ones after six hours, and forgets them after twelve.
#[derive(Debug)]
pub struct Tickets(Arc<dyn ProducesTickets>);

impl Tickets {
    pub fn new() -> Result<Self, Error> {
        aws_lc_rs::Ticketer::new().map(Self)
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        self.0.enabled()
    }

    fn lifetime(&self) -> u32 {
        self.0.lifetime()
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let unused = UnixTime::now().as_secs() + u64::from(self.lifetime()); // keys change only while tickets come and go
        let valid_until = VALID_UNTIL.get().min(unused);
        self.0.encrypt(&[&valid_until.to_be_bytes(), plain].concat())
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        let mut plain = self.0.decrypt(cipher)?;
        let valid_until = u64::from_be_bytes(*plain.first_chunk::<TIME_BYTES>()?);
        if valid_until < UnixTime::now().as_secs() {
            return None;
        }
        VALID_UNTIL.set(valid_until); // a new ticket may be made at once
        plain.drain(..TIME_BYTES);
        Some(plain)
    }
}
