//! Logs: pretty on a terminal, one JSON object a line otherwise.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

use crate::settings::{LogFormat, Settings};

/// Sends the process's log to standard error, as `log.level` and `log.format` say.
///
/// # Errors
/// A log was installed before, or the level is not one.
pub fn install(settings: &Settings) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let filter = EnvFilter::try_new(&settings.log.level)?;
    let is_terminal = std::io::stderr().is_terminal();
    let is_pretty = match settings.log.format {
        LogFormat::Auto => is_terminal,
        LogFormat::Pretty => true,
        LogFormat::Json => false,
    };
    std::panic::set_hook(Box::new(log_panic));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if is_pretty {
        builder.with_ansi(is_terminal).with_target(false).try_init()
    } else {
        builder.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init()
    }
}

// As a record like any other, within the span of the request it happened in.
fn log_panic(panic: &std::panic::PanicHookInfo<'_>) {
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let message = panic.payload_as_str().unwrap_or_default();
    tracing::error!(place, message, "a defect: the code panicked");
}
