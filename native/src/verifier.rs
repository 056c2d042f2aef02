//! Which client certificates are valid: webpki's rules, and what webpki does not ask of the certificates in the CA file.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath, anchor_from_trusted_cert};
use x509_parser::prelude::{FromDer, X509Certificate, X509Version};

/// Certificates beside the peer's own. webpki tries all ways through those with the same name: a stranger could make it
/// work for 20 to 50 ms with more, and for 4 to 13 ms with these. Agents send none to two.
const INTERMEDIATES_MAX: usize = 4;

/// Chains that are remembered as valid. All agents of a cluster that Calico's operator runs have the same certificate.
const REMEMBERED_MAX: usize = 64;
/// A chain that is larger is verified each time: together the remembered ones take 1 MB at most.
const REMEMBERED_BYTES_MAX: usize = 16 * 1024;

/// What a certificate of the CA file restricts. webpki takes only its name and its key.
#[derive(Debug)]
struct Limits {
    not_before: i64,
    not_after: i64,
    intermediates: Option<u32>,
}

/// A chain that was valid, and from when to when each of its certificates is, in seconds since 1970.
struct Remembered {
    chain: Vec<Vec<u8>>,
    not_before: i64,
    not_after: i64,
}

/// Verifies chains. As in Go, each certificate of the CA file is an end of trust.
pub struct Verifier {
    anchors: Vec<TrustAnchor<'static>>,
    /// One for each anchor.
    limits: Vec<Limits>,
    algorithms: WebPkiSupportedAlgorithms,
    /// Of chains that these anchors have vouched for; the latest last. Reading files anew makes another verifier.
    remembered: Mutex<VecDeque<Remembered>>,
}

impl Verifier {
    /// Fails with a text for certificates which would have another meaning for webpki than for OpenSSL and Go.
    pub fn new(trusted: &[CertificateDer<'_>], algorithms: WebPkiSupportedAlgorithms) -> Result<Self, String> {
        let mut anchors = Vec::new();
        let mut limits = Vec::new();
        for (position, certificate) in trusted.iter().enumerate() {
            let place = |problem: &str| format!("certificate {} of the CA file {problem}", position + 1);
            limits.push(limits_of(certificate).map_err(|problem| place(&problem))?);
            let anchor = anchor_from_trusted_cert(certificate).map_err(|error| place(&error.to_string()))?;
            anchors.push(anchor.to_owned());
        }
        if anchors.is_empty() {
            return Err("the CA file has no certificate".into());
        }
        Ok(Self { anchors, limits, algorithms, remembered: Mutex::default() })
    }

    /// Whether exactly these certificates were valid before, and their time is not over. That they are signed does not change.
    fn remembers(&self, chain: &[&[u8]], now: i64) -> bool {
        let remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        remembered.iter().any(|one| (one.not_before..=one.not_after).contains(&now) && one.chain == chain)
    }

    /// The chain is valid at this time, by this anchor.
    fn remember(&self, chain: &[&[u8]], anchor: usize, now: i64) {
        if chain.iter().map(|certificate| certificate.len()).sum::<usize>() > REMEMBERED_BYTES_MAX {
            return;
        }
        let limits = &self.limits[anchor];
        let (mut not_before, mut not_after) = (limits.not_before, limits.not_after);
        for certificate in chain {
            let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return };
            not_before = not_before.max(certificate.validity().not_before.timestamp());
            not_after = not_after.min(certificate.validity().not_after.timestamp());
        }
        if !(not_before..=not_after).contains(&now) {
            return; // one that was sent needlessly
        }
        let chain = chain.iter().map(|certificate| certificate.to_vec()).collect();
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.len() == REMEMBERED_MAX {
            remembered.pop_front();
        }
        remembered.push_back(Remembered { chain, not_before, not_after });
    }

    fn position_of(&self, anchor: &TrustAnchor<'_>) -> Option<usize> {
        self.anchors.iter().position(|known| std::ptr::eq(known, anchor))
    }

    /// Until when a path through these certificates stays valid that is valid now, at least: seconds since 1970.
    pub fn valid_until(&self, certificates: &[CertificateDer<'_>]) -> u64 {
        let now = i64::try_from(UnixTime::now().as_secs()).unwrap_or(i64::MAX);
        let theirs = certificates.iter().map(|certificate| match X509Certificate::from_der(certificate) {
            Ok((_, certificate)) => certificate.validity().not_after.timestamp(),
            Err(_) => 0,
        });
        let ours = self.limits.iter().map(|limits| limits.not_after).filter(|not_after| *not_after >= now);
        theirs.chain(ours).min().and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(0)
    }

    /// Can only refuse a path that webpki has found to be valid.
    fn check_path(&self, path: &VerifiedPath<'_>, now: UnixTime) -> Result<(), webpki::Error> {
        let limits = &self.limits[self.position_of(path.anchor()).ok_or(webpki::Error::UnknownIssuer)?];
        let seconds = i64::try_from(now.as_secs()).map_err(|_| webpki::Error::BadDerTime)?;
        let at = |seconds: i64| UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds.max(0) as u64));
        if seconds > limits.not_after {
            return Err(webpki::Error::CertExpired { time: now, not_after: at(limits.not_after) });
        }
        if seconds < limits.not_before {
            return Err(webpki::Error::CertNotValidYet { time: now, not_before: at(limits.not_before) });
        }
        let mut count = 0;
        for intermediate in path.intermediate_certificates() {
            count += 1;
            let der = intermediate.der();
            let (_, certificate) = X509Certificate::from_der(&der).map_err(|_| webpki::Error::BadDer)?;
            if !may_sign(&certificate).map_err(|_| webpki::Error::BadDer)? {
                return Err(webpki::Error::EndEntityUsedAsCa);
            }
        }
        if limits.intermediates.is_some_and(|limit| count > limit) {
            return Err(webpki::Error::PathLenConstraintViolated);
        }
        Ok(())
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Verifier").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl ClientCertVerifier for Verifier {
    /// No hints, as with OpenSSL.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if intermediates.len() > INTERMEDIATES_MAX {
            return Err(as_rustls_error(webpki::Error::MaximumPathDepthExceeded));
        }
        let chain: Vec<&[u8]> = std::iter::once(end_entity).chain(intermediates).map(|one| &**one).collect();
        let seconds = i64::try_from(now.as_secs()).map_err(|_| as_rustls_error(webpki::Error::BadDerTime))?;
        if self.remembers(&chain, seconds) {
            return Ok(ClientCertVerified::assertion());
        }
        let certificate = EndEntityCert::try_from(end_entity).map_err(as_rustls_error)?;
        let path = certificate
            .verify_for_usage(
                self.algorithms.all,
                &self.anchors,
                intermediates,
                now,
                KeyUsage::client_auth(),
                None,
                Some(&|path| self.check_path(path, now)),
            )
            .map_err(as_rustls_error)?;
        if let Some(anchor) = self.position_of(path.anchor()) {
            self.remember(&chain, anchor, seconds);
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// So that the peer gets the alert that fits.
fn as_rustls_error(error: webpki::Error) -> Error {
    use webpki::Error::{
        BadDer, BadDerTime, CertExpired, CertNotValidYet, InvalidSignatureForPublicKey, RequiredEkuNotFoundContext,
        TrailingData, UnknownIssuer,
    };
    Error::InvalidCertificate(match error {
        BadDer | BadDerTime | TrailingData(_) => CertificateError::BadEncoding,
        CertExpired { time, not_after } => CertificateError::ExpiredContext { time, not_after },
        CertNotValidYet { time, not_before } => CertificateError::NotValidYetContext { time, not_before },
        InvalidSignatureForPublicKey => CertificateError::BadSignature,
        RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
        UnknownIssuer => CertificateError::UnknownIssuer,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    })
}

fn limits_of(certificate: &CertificateDer<'_>) -> Result<Limits, String> {
    let unreadable = |error: &dyn fmt::Display| format!("cannot be read: {error}");
    let (_, certificate) = X509Certificate::from_der(certificate).map_err(|error| unreadable(&error))?;
    let constraints = certificate.basic_constraints().map_err(|error| unreadable(&error))?;
    let is_authority = constraints.as_ref().is_some_and(|found| found.value.ca);
    if certificate.version() == X509Version::V3 && !is_authority {
        return Err("is none of an authority".into());
    }
    if !may_sign(&certificate).map_err(|error| unreadable(&error))? {
        return Err("has no usage keyCertSign".into());
    }
    if certificate.name_constraints().map_err(|error| unreadable(&error))?.is_some() {
        return Err("has name constraints".into());
    }
    Ok(Limits {
        not_before: certificate.validity().not_before.timestamp(),
        not_after: certificate.validity().not_after.timestamp(),
        intermediates: constraints.and_then(|found| found.value.path_len_constraint),
    })
}

fn may_sign(certificate: &X509Certificate<'_>) -> Result<bool, x509_parser::error::X509Error> {
    Ok(certificate.key_usage()?.is_none_or(|usage| usage.value.key_cert_sign()))
}
