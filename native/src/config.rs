//! What the handshakes of one set of files have in common.

use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::{ProtocolVersion, ServerConfig, version};

use crate::tickets::Tickets;
use crate::verifier::Verifier;

/// A server's configuration: mutual TLS. Sessions are resumed by tickets, whose keys die with it; the server keeps none.
#[pyclass(frozen, module = "typha_rustls")]
pub struct Config {
    pub inner: Arc<ServerConfig>,
    pub verifier: Arc<Verifier>,
}

#[pymethods]
impl Config {
    /// From DER: the server's chain and key, and the trusted certificates. `old_suites` are the suites of TLS 1.2 by the names of the IANA; without any,
    /// there is only TLS 1.3.
    ///
    /// Raises ValueError with a reason if rustls cannot do what OpenSSL would do with these.
    #[new]
    fn new(chain: Vec<Vec<u8>>, key: &[u8], trusted: Vec<Vec<u8>>, old_suites: Vec<String>) -> PyResult<Self> {
        make(chain, key, trusted, &old_suites).map_err(PyValueError::new_err)
    }
}

fn make(chain: Vec<Vec<u8>>, key: &[u8], trusted: Vec<Vec<u8>>, old_suites: &[String]) -> Result<Config, String> {
    let trusted: Vec<CertificateDer> = trusted.into_iter().map(CertificateDer::from).collect();
    let chain = chain.into_iter().map(CertificateDer::from).collect();
    let mut provider = aws_lc_rs::default_provider();
    for name in old_suites {
        if !provider.cipher_suites.iter().any(|suite| iana_name(suite.suite()) == *name) {
            return Err(format!("rustls has no suite {name}"));
        }
    }
    provider.cipher_suites.retain(|suite| {
        suite.version().version == ProtocolVersion::TLSv1_3 || old_suites.contains(&iana_name(suite.suite()))
    });
    let versions: &[_] = if old_suites.is_empty() { &[&version::TLS13] } else { &[&version::TLS12, &version::TLS13] };
    let verifier = Arc::new(Verifier::new(&trusted, provider.signature_verification_algorithms)?);
    let key = PrivateKeyDer::try_from(key).map_err(|error| format!("the key cannot be read: {error}"))?.clone_key();
    let mut config = ServerConfig::builder_with_provider(Arc::new(CryptoProvider { ..provider }))
        .with_protocol_versions(versions)
        .map_err(|error| error.to_string())?
        .with_client_cert_verifier(verifier.clone())
        .with_single_cert(chain, key)
        .map_err(|error| error.to_string())?;
    // A client gets one only if it says that it could use it (psk_key_exchange_modes, RFC 8446). Go's clients without a cache of
    // sessions do not, Calico's agents among them.
    config.send_tls13_tickets = 1;
    config.ticketer = Arc::new(Tickets::new().map_err(|error| error.to_string())?);
    config.max_early_data_size = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Config { inner: Arc::new(config), verifier })
}

/// The name that Go uses, too.
fn iana_name(suite: rustls::CipherSuite) -> String {
    suite.as_str().unwrap_or_default().to_owned()
}
