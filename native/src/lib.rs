//! The server's end of TLS by rustls, for `typha.worker.rustls_session`: bytes in, bytes out.
//!
//! Glue only: rustls makes and checks records and messages, webpki verifies chains, x509-parser reads names. A panic
//! becomes an exception of that one connection.

mod config;
mod room;
mod session;
mod tickets;
mod verifier;

use pyo3::prelude::*;

#[pymodule(gil_used = true)]
fn typha_rustls(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<config::Config>()?;
    module.add_class::<session::Session>()?;
    module.add_function(wrap_pyfunction!(session::take_steps, module)?)
}
