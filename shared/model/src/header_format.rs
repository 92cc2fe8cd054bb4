//! Header values as Envoy reads them: `%COMMAND%`, `%COMMAND(argument)%` and `%COMMAND(argument):length%` are replaced, `%%` is a
//! percent sign, and for anything else Envoy refuses the whole route configuration. Users write `100%` too, and mean it.
//! In: a value. Out: whether it can be given to Envoy as it is.
//! Source: Envoy, "Access log command operators"; which of them Envoy 1.40 takes in a header is a test with a real one.

/// Commands without an argument.
pub const PLAIN: &[&str] = &[
    "BYTES_RECEIVED",
    "BYTES_SENT",
    "CONNECTION_ID",
    "CONNECTION_TERMINATION_DETAILS",
    "DOWNSTREAM_DIRECT_LOCAL_ADDRESS",
    "DOWNSTREAM_DIRECT_REMOTE_ADDRESS",
    "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT",
    "DOWNSTREAM_LOCAL_ADDRESS",
    "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT",
    "DOWNSTREAM_LOCAL_DNS_SAN",
    "DOWNSTREAM_LOCAL_PORT",
    "DOWNSTREAM_LOCAL_SUBJECT",
    "DOWNSTREAM_LOCAL_URI_SAN",
    "DOWNSTREAM_PEER_CERT",
    "DOWNSTREAM_PEER_CERT_V_END",
    "DOWNSTREAM_PEER_CERT_V_START",
    "DOWNSTREAM_PEER_DNS_SAN",
    "DOWNSTREAM_PEER_EMAIL_SAN",
    "DOWNSTREAM_PEER_FINGERPRINT_1",
    "DOWNSTREAM_PEER_FINGERPRINT_256",
    "DOWNSTREAM_PEER_IP_SAN",
    "DOWNSTREAM_PEER_ISSUER",
    "DOWNSTREAM_PEER_SERIAL",
    "DOWNSTREAM_PEER_SUBJECT",
    "DOWNSTREAM_PEER_URI_SAN",
    "DOWNSTREAM_REMOTE_ADDRESS",
    "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
    "DOWNSTREAM_REMOTE_PORT",
    "DOWNSTREAM_TLS_CIPHER",
    "DOWNSTREAM_TLS_SESSION_ID",
    "DOWNSTREAM_TLS_VERSION",
    "DOWNSTREAM_TRANSPORT_FAILURE_REASON",
    "DURATION",
    "FILTER_CHAIN_NAME",
    "GRPC_STATUS",
    "GRPC_STATUS_NUMBER",
    "HOSTNAME",
    "PROTOCOL",
    "REQUESTED_SERVER_NAME",
    "REQUEST_DURATION",
    "RESPONSE_CODE",
    "RESPONSE_CODE_DETAILS",
    "RESPONSE_DURATION",
    "RESPONSE_FLAGS",
    "RESPONSE_FLAGS_LONG",
    "ROUTE_NAME",
    "STREAM_ID",
    "TRACE_ID",
    "UPSTREAM_CLUSTER",
    "UPSTREAM_CLUSTER_RAW",
    "UPSTREAM_CONNECTION_ID",
    "UPSTREAM_HOST",
    "UPSTREAM_LOCAL_ADDRESS",
    "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT",
    "UPSTREAM_LOCAL_PORT",
    "UPSTREAM_PEER_CERT",
    "UPSTREAM_PEER_CERT_V_END",
    "UPSTREAM_PEER_CERT_V_START",
    "UPSTREAM_PEER_ISSUER",
    "UPSTREAM_PEER_SUBJECT",
    "UPSTREAM_PEER_URI_SAN",
    "UPSTREAM_PROTOCOL",
    "UPSTREAM_REMOTE_ADDRESS",
    "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
    "UPSTREAM_REMOTE_PORT",
    "UPSTREAM_REQUEST_ATTEMPT_COUNT",
    "UPSTREAM_TLS_CIPHER",
    "UPSTREAM_TLS_SESSION_ID",
    "UPSTREAM_TLS_VERSION",
    "UPSTREAM_TRANSPORT_FAILURE_REASON",
    "VIRTUAL_CLUSTER_NAME",
];

/// Commands whose argument is the name of a header, and maybe that of a second one: `a?b`.
const OF_HEADERS: &[&str] = &["REQ", "RESP", "TRAILER"];

/// Commands whose argument is a path of names, `a:b`.
const OF_NAMES: &[&str] = &["DYNAMIC_METADATA", "CLUSTER_METADATA", "UPSTREAM_METADATA"];

/// Commands whose argument is the format of a time, which may be left out.
const OF_TIMES: &[&str] = &[
    "START_TIME",
    "DOWNSTREAM_PEER_CERT_V_END",
    "DOWNSTREAM_PEER_CERT_V_START",
    "UPSTREAM_PEER_CERT_V_END",
    "UPSTREAM_PEER_CERT_V_START",
];

/// What a header value is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading<'a> {
    /// Its percent signs, if any, are commands and `%%`: Envoy takes it as it is.
    Formatted,
    /// Its percent signs mean themselves, and have to be doubled for Envoy.
    Literal,
    /// It has the form of a command that Envoy does not know.
    Unknown(&'a str),
}

/// Reads a header value.
pub fn read(value: &str) -> Reading<'_> {
    let mut rest = value;
    let mut unknown = None;
    while let Some(at) = rest.find('%') {
        let from = &rest[at..];
        if let Some(after) = from.strip_prefix("%%") {
            rest = after;
            continue;
        }
        let Some((command, after)) = Command::parse(&from[1..]) else {
            return Reading::Literal;
        };
        if !command.is_known() {
            unknown = unknown.or_else(|| from.get(..from.len() - after.len()));
        }
        rest = after;
    }
    unknown.map_or(Reading::Formatted, Reading::Unknown)
}

struct Command<'a> {
    name: &'a str,
    argument: Option<&'a str>,
    length: Option<&'a str>,
}

impl<'a> Command<'a> {
    /// A command after its first percent sign, and what follows it.
    fn parse(text: &'a str) -> Option<(Self, &'a str)> {
        let name_end = text
            .find(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'))
            .filter(|end| *end > 0)?;
        let (name, mut rest) = text.split_at(name_end);
        let mut argument = None;
        if let Some(inside) = rest.strip_prefix('(') {
            let (found, after) = inside.split_once(')')?;
            (argument, rest) = (Some(found), after);
        }
        let mut length = None;
        if let Some(digits) = rest.strip_prefix(':') {
            let end = digits.find(|c: char| !c.is_ascii_digit())?;
            (length, rest) = (Some(&digits[..end]), &digits[end..]);
        }
        let rest = rest.strip_prefix('%')?;
        Some((Self { name, argument, length }, rest))
    }

    fn is_known(&self) -> bool {
        let word = |s: &str| !s.is_empty() && s.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(&c));
        let header = |s: &str| word(s.strip_prefix(':').unwrap_or(s));
        let length = self
            .length
            .is_none_or(|digits| (1..=4).contains(&digits.len()) && !digits.starts_with('0'));
        match self.argument {
            None if self.name == "START_TIME" => self.length.is_none(),
            None => PLAIN.contains(&self.name) && self.length.is_none(),
            Some(format) if OF_TIMES.contains(&self.name) => self.length.is_none() && is_time_format(format),
            Some(headers) if OF_HEADERS.contains(&self.name) => {
                let (first, second) = headers.split_once('?').unwrap_or((headers, headers));
                length && header(first) && header(second)
            }
            Some(names) if OF_NAMES.contains(&self.name) => self.length.is_none() && names.split(':').all(word),
            Some(variable) if self.name == "ENVIRONMENT" => length && word(variable),
            Some(object) if self.name == "FILTER_STATE" => {
                let (key, form) = object.split_once(':').unwrap_or((object, "TYPED"));
                let field = |form: &str| form.strip_prefix("FIELD:").is_some_and(word);
                length && word(key) && (matches!(form, "PLAIN" | "TYPED") || field(form))
            }
            Some(_) => false,
        }
    }
}

/// Letters of `strftime` that neither depend on a locale nor need an argument.
fn is_time_format(format: &str) -> bool {
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        rest = &rest[at + 1..];
        let digits = rest.trim_start_matches(|c: char| ('1'..='9').contains(&c));
        // %3f: that many digits of the second's fraction.
        let good = (digits.starts_with('f') && rest.len() - digits.len() <= 1)
            || ["Y", "m", "d", "H", "M", "S", "s", "z", "T", "F"]
                .iter()
                .any(|letter| rest.starts_with(letter));
        if !good {
            return false;
        }
        rest = digits.get(1..).unwrap_or_default();
    }
    !format.is_empty() && format.bytes().all(|c| (b' '..=b'~').contains(&c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_formats_texts_or_mistakes() {
        for value in [
            "",
            "plain",
            "%%",
            "100%%",
            "%START_TIME%",
            "%START_TIME(%Y/%m/%dT%H:%M:%S.%3fZ)%",
            "a %REQ(x-y?:path):12% b",
            "%DOWNSTREAM_PEER_URI_SAN%%PROTOCOL%",
            "%DYNAMIC_METADATA(a.b:c)%",
            "%TRACE_ID%",
            "%DOWNSTREAM_PEER_CERT_V_START(%Y-%m)%",
            "%ENVIRONMENT(HOME):9%",
            "%FILTER_STATE(a.b:FIELD:c)%",
        ] {
            assert_eq!(read(value), Reading::Formatted, "{value}");
        }
        for value in ["100%", "%", "50% off %", "%a%", "%REQ(x%", "%REQ(x", "é%", "%PROTOCOL"] {
            assert_eq!(read(value), Reading::Literal, "{value}");
        }
        for (value, unknown) in [
            ("%UNKNOWN%", "%UNKNOWN%"),
            ("a %REQ% b", "%REQ%"),
            ("%PROTOCOL(x)%", "%PROTOCOL(x)%"),
            ("%PROTOCOL:3%", "%PROTOCOL:3%"),
            ("%REQ(a):%", "%REQ(a):%"),
            ("%ENVIRONMENT%", "%ENVIRONMENT%"),
            ("%FILTER_STATE(a:b)%", "%FILTER_STATE(a:b)%"),
            ("%UPSTREAM_METADATA(a:b):9%", "%UPSTREAM_METADATA(a:b):9%"),
            ("%REQ(a b)%", "%REQ(a b)%"),
            ("%START_TIME(%Q)%", "%START_TIME(%Q)%"),
        ] {
            assert_eq!(read(value), Reading::Unknown(unknown), "{value}");
        }
    }
}
