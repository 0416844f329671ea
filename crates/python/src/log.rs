//! The data path's log: lines on stderr in the format of the control plane's, written without the GIL and one `write` each, so
//! that lines of the two never mix.

use std::{io::Write, time::SystemTime};

use log::{Level, LevelFilter, Log, Metadata, Record};
use pyo3::prelude::*;

use crate::error::native;

struct Stderr {
    json: bool,
}

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let line = line(
                self.json,
                SystemTime::now(),
                record.level(),
                record.target(),
                &record.args().to_string(),
            );
            // A log that cannot be written has nobody to tell.
            let _ = std::io::stderr().lock().write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

/// One log line with its newline. `python/playhead/log.py` writes the same two formats.
fn line(json: bool, now: SystemTime, level: Level, target: &str, message: &str) -> String {
    let time = humantime::format_rfc3339_micros(now);
    let level = match level {
        Level::Error => "error",
        Level::Warn => "warning",
        Level::Info => "info",
        Level::Debug | Level::Trace => "debug",
    };
    let logger = target.strip_prefix("playhead_").unwrap_or(target).replace("::", ".");
    if json {
        let fields = serde_json::json!({
            "timestamp": time.to_string(), "level": level, "event": message, "logger": logger,
        });
        return format!("{fields}\n");
    }
    // A peer's bytes may be in the message: they must not be able to start a line of their own.
    let message: String = message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    format!("{time} {level:<7} {message} logger={logger}\n")
}

/// Sends the data path's log to stderr from `level` (debug, info, warning, error) on. The first call decides the format.
#[pyfunction]
pub(crate) fn log_to_stderr(level: &str, json: bool) -> PyResult<()> {
    let filter = match level {
        "debug" => LevelFilter::Debug,
        "info" => LevelFilter::Info,
        "warning" => LevelFilter::Warn,
        "error" => LevelFilter::Error,
        other => {
            return Err(native(
                "invalid",
                &format!("log level {other:?}: it is debug, info, warning or error"),
            ))
        }
    };
    // A second logger is refused by the log crate; the level may still change.
    let _ = log::set_boxed_logger(Box::new(Stderr { json }));
    log::set_max_level(filter);
    Ok(())
}
