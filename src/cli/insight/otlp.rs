//! `--otlp`: a recording as OTLP/HTTP with JSON bodies, to a collector's `/v1/traces`.
//!
//! Plain HTTP over a socket, for a collector on this machine or in this network, which is where collectors are; TLS is
//! theirs. Nothing is tried twice: an import does not wait for whoever watches it.

use super::chrome::as_json;
use super::recorder::{Recording, Span, Value};
use serde_json::{Value as Json, json};
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::str::FromStr;
use std::time::Duration;
use transload::{Error, ErrorKind, Result, ResultExt, TraceId};

/// Collectors take bodies of a few megabytes; a span is about half a kilobyte.
const SPANS_PER_REQUEST: usize = 2000;

const PATIENCE: Duration = Duration::from_secs(5);

/// No answer that says more than this is read.
const MAX_ANSWER_BYTES: u64 = 64 << 10;

/// Where to send: `http://host[:port][/path]`, the port 4318 and the path `/v1/traces` unless given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    host: String,
    port: u16,
    path: String,
}

impl FromStr for Endpoint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |why: &'static str| Error::new(ErrorKind::InvalidArgument, format!("'{text}': {why}"));
        let rest = text.strip_prefix("http://").ok_or_else(|| {
            wrong("it does not begin with http://")
                .with_hint("send to a collector nearby, and let that one speak TLS")
        })?;
        let printable = rest.bytes().all(|byte| byte.is_ascii_graphic());
        let (place, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, port) = match place.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                (host, port.parse().map_err(|_| wrong("no such port"))?)
            }
            _ => (place, 4318),
        };
        if host.is_empty() || !printable || host.contains('@') {
            return Err(wrong("it names no host"));
        }
        let path = if path.is_empty() { "/v1/traces".to_string() } else { format!("/{path}") };
        Ok(Endpoint { host: host.to_string(), port, path })
    }
}

/// Sends everything.
pub fn send(endpoint: &Endpoint, recording: &Recording, trace_id: TraceId) -> Result<()> {
    let doing = || format!("cannot send the trace to http://{}:{}", endpoint.host, endpoint.port);
    let base = SpanIds::fresh();
    let batches = recording.spans.chunks(SPANS_PER_REQUEST);
    let mut bodies = batches.map(|spans| body(recording, spans, trace_id, &base).to_string());
    bodies.try_for_each(|body| post(endpoint, &body)).doing(doing)
}

/// Numbers of spans as this run alone has them: other processes may add to the same trace.
struct SpanIds(u64);

impl SpanIds {
    fn fresh() -> Self {
        let hex = TraceId::fresh().to_string();
        SpanIds(u64::from_str_radix(&hex[..16], 16).unwrap_or_default())
    }

    fn of(&self, id: u64) -> String {
        format!("{:016x}", self.0.wrapping_add(id).max(1))
    }
}

fn body(recording: &Recording, spans: &[Span], trace_id: TraceId, ids: &SpanIds) -> Json {
    let one = |span: &Span| as_otlp(recording, span, trace_id, ids);
    json!({"resourceSpans": [{
        "resource": {"attributes": [
            attribute("service.name", &json!("transload")),
            attribute("service.version", &json!(env!("CARGO_PKG_VERSION"))),
            attribute("process.pid", &json!(std::process::id())),
        ]},
        "scopeSpans": [{
            "scope": {"name": "transload", "version": env!("CARGO_PKG_VERSION")},
            "spans": spans.iter().map(one).collect::<Vec<_>>(),
        }],
    }]})
}

fn as_otlp(recording: &Recording, span: &Span, trace_id: TraceId, ids: &SpanIds) -> Json {
    let nanos = |us: u64| ((recording.began_unix_us + us) * 1000).to_string();
    let fields = span.fields.iter().map(|(name, value)| (*name, as_json(value)));
    let thread = recording.threads.get(&span.thread).map(|name| ("thread.name", json!(name)));
    let all = fields.chain([("thread.id", json!(span.thread))]).chain(thread);
    let mut otlp = json!({
        "traceId": trace_id.to_string(),
        "spanId": ids.of(span.id),
        "name": span.name,
        "kind": 1,
        "startTimeUnixNano": nanos(span.begin_us),
        "endTimeUnixNano": nanos(span.end_us),
        "attributes": all.map(|(name, value)| attribute(name, &value)).collect::<Vec<_>>(),
        "status": {"code": 0},
    });
    if let Some(parent) = span.parent {
        otlp["parentSpanId"] = json!(ids.of(parent));
    }
    if let Some(Value::Text(kind)) = span.field("error") {
        otlp["status"] = json!({"code": 2, "message": kind});
    }
    otlp
}

/// 64-bit numbers are strings in JSON, says the protocol.
fn attribute(key: &str, value: &Json) -> Json {
    let value = match value {
        Json::Number(number) => json!({"intValue": number.to_string()}),
        Json::Bool(bool) => json!({"boolValue": bool}),
        other => json!({"stringValue": other.as_str().unwrap_or_default()}),
    };
    json!({"key": key, "value": value})
}

fn post(endpoint: &Endpoint, body: &str) -> Result<()> {
    let mut stream = connect(endpoint)?;
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: {}:{}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        endpoint.path,
        endpoint.host,
        endpoint.port,
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    let mut answer = Vec::new();
    // A collector that closes without a goodbye has answered all the same.
    let _ = stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer);
    check(&String::from_utf8_lossy(&answer))
}

fn connect(endpoint: &Endpoint) -> Result<TcpStream> {
    let host = endpoint.host.trim_start_matches('[').trim_end_matches(']');
    let mut last = Error::new(ErrorKind::NotFound, "the host has no address");
    for address in (host, endpoint.port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => {
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                return Ok(stream);
            }
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}

fn check(answer: &str) -> Result<()> {
    let status = answer.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5));
    match status {
        Some(status) if status.starts_with('2') => Ok(()),
        Some(status) => Err(Error::new(ErrorKind::Io, format!("the collector answered {status}"))),
        None => Err(Error::new(ErrorKind::Io, "the collector did not answer in HTTP")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_plain_url() {
        let of = |host: &str, port, path: &str| Endpoint { host: host.into(), port, path: path.into() };
        for (text, expected) in [
            ("http://localhost", of("localhost", 4318, "/v1/traces")),
            ("http://10.0.0.1:9/", of("10.0.0.1", 9, "/v1/traces")),
            ("http://[::1]:80/otlp/v1/traces", of("[::1]", 80, "/otlp/v1/traces")),
            ("http://[::1]", of("[::1]", 4318, "/v1/traces")),
        ] {
            assert_eq!(text.parse::<Endpoint>().expect(text), expected);
        }
        for wrong in
            ["", "https://x", "http://", "http://a:b", "http://a b", "http://u@h", "http://a\r\nX: y"]
        {
            assert!(wrong.parse::<Endpoint>().is_err(), "{wrong:?}");
        }
    }
}
