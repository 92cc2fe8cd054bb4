//! Errors as HTTP answers. One constructor for each row of Kuma's table of errors; handlers pass the title.
//! Invariant: the body is always Kuma's error JSON, and says nothing about the inside of the program.
//! Source: Kuma, `pkg/core/rest/errors`. Different here: errors of the router (404, 405, 406, 413, 415) have the JSON body too.

use std::{borrow::Cow, fmt};

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use ursa_model::{Violations, validate::Violation};

use crate::{auth::User, backend::Unavailable};

/// Longest text that is quoted from a request.
const MAX_TEXT: usize = 512;
/// Most violations shown; a client repairs them in rounds.
const MAX_VIOLATIONS: usize = 100;
/// Seconds after which a leader is likely to be elected.
const RETRY_AFTER: u32 = 1;

type Text = Cow<'static, str>;

/// An answer that is no success.
#[derive(Clone, PartialEq, Eq)]
pub struct Error(Box<Problem>);

#[derive(Clone, PartialEq, Eq)]
struct Problem {
    status: StatusCode,
    title: Text,
    detail: Text,
    violations: Violations,
    retry_after: Option<u32>,
    challenge: bool,
}

#[derive(Serialize)]
struct Body<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    status: u16,
    title: &'a str,
    detail: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    invalid_parameters: Vec<InvalidParameter<'a>>,
    details: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    causes: Vec<Cause<'a>>,
}

#[derive(Serialize)]
struct InvalidParameter<'a> {
    field: &'a str,
    reason: &'a str,
}

#[derive(Serialize)]
struct Cause<'a> {
    field: &'a str,
    message: &'a str,
}

impl Error {
    fn new(status: StatusCode, title: impl Into<Text>, detail: impl Into<Text>) -> Self {
        Self(Box::new(Problem {
            status,
            title: title.into(),
            detail: short(detail.into()),
            violations: Violations::default(),
            retry_after: None,
            challenge: false,
        }))
    }

    fn with(mut self, violations: Violations) -> Self {
        self.0.violations = violations;
        self.0.violations.0.truncate(MAX_VIOLATIONS);
        for violation in &mut self.0.violations.0 {
            violation.field = short(std::mem::take(&mut violation.field).into()).into_owned();
            violation.reason = short(std::mem::take(&mut violation.reason).into()).into_owned();
        }
        self
    }

    /// The resource, or its mesh, is not there.
    pub fn not_found(title: &'static str) -> Self {
        Self::new(StatusCode::NOT_FOUND, title, "Not found")
    }

    /// The request cannot be read.
    pub fn bad_request(detail: impl fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "Bad Request", format!("bad request: {detail}"))
    }

    /// The body is no resource of the kind.
    pub fn unparsable(kind: impl fmt::Display, reason: impl AsRef<str>) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "Bad Request",
            format!("invalid {kind} object: {:?}", short(reason.as_ref().to_owned().into())),
        )
    }

    /// The body is no resource of the kind: these fields cannot be read.
    pub fn unreadable(kind: impl fmt::Display, violations: Violations) -> Self {
        Self::unparsable(kind, violations.to_string()).with(violations)
    }

    /// Fields are wrong.
    pub fn invalid(title: &'static str, violations: Violations) -> Self {
        Self::new(StatusCode::BAD_REQUEST, title, "Resource is not valid").with(violations)
    }

    /// One field is wrong.
    pub fn invalid_field(title: &'static str, field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::invalid(
            title,
            Violations(vec![Violation {
                field: field.into(),
                reason: reason.into(),
            }]),
        )
    }

    /// The mesh went away between check and write.
    pub fn mesh_missing(title: &'static str, mesh: &str) -> Self {
        let violation = Violation {
            field: "mesh".into(),
            reason: format!("mesh of name {mesh} is not found"),
        };
        Self::new(StatusCode::BAD_REQUEST, title, "Mesh is not found").with(Violations(vec![violation]))
    }

    /// A value the store refuses, such as an offset.
    pub fn store_invalid(title: &'static str, reason: impl fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, title, format!("invalid: {reason}"))
    }

    /// `size` is out of range.
    pub fn page_size(title: &'static str, reason: impl Into<String>) -> Self {
        let violation = Violation {
            field: "size".into(),
            reason: reason.into(),
        };
        Self::new(StatusCode::BAD_REQUEST, title, "Invalid page size").with(Violations(vec![violation]))
    }

    /// There is no key to sign a token with.
    pub fn signing_key(detail: String) -> Self {
        Self::new(StatusCode::NOT_FOUND, "Signing Key not found", detail)
    }

    /// The key that should sign is stored, but is no key.
    pub fn broken_signing_key(detail: String) -> Self {
        Self::new(StatusCode::CONFLICT, "Signing Key unusable", detail)
    }

    /// The kind cannot be written here.
    pub fn read_only(detail: &'static str) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed", detail)
    }

    /// Somebody else wrote at the same time.
    pub fn conflict(detail: impl fmt::Display) -> Self {
        Self::new(StatusCode::CONFLICT, "Conflict", detail.to_string())
    }

    /// The caller may not do that.
    pub fn denied(user: &User, what: impl fmt::Display) -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "Access Denied",
            format!("user {:?} cannot access {what}", short(user.to_string().into())),
        )
    }

    /// The token is not accepted. Why, only the audit log says.
    pub fn unauthenticated() -> Self {
        let mut error = Self::new(StatusCode::UNAUTHORIZED, "Invalid authentication data", "Unauthenticated");
        error.0.challenge = true;
        error
    }

    /// The store cannot answer; nothing was changed.
    pub fn unavailable(why: &Unavailable) -> Self {
        let detail = match &why.leader {
            Some(leader) => format!("{why}; the leader is {leader}"),
            None => why.to_string(),
        };
        let mut error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "Service unavailable", detail);
        error.0.retry_after = Some(RETRY_AFTER);
        error
    }

    /// As many requests as may wait at once do; nothing was changed.
    pub(crate) fn too_many_waiters() -> Self {
        let detail = "too many requests wait for zones at the moment, try again later or without wait";
        let mut error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "Service unavailable", detail);
        error.0.retry_after = Some(RETRY_AFTER);
        error
    }

    /// As many requests as may read the past at once do.
    pub(crate) fn too_many_historians() -> Self {
        let detail = "too many requests read the history at the moment, try again later";
        let mut error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "Service unavailable", detail);
        error.0.retry_after = Some(RETRY_AFTER);
        error
    }

    /// The revision is below the floor of the history.
    pub(crate) fn compacted(field: &str, detail: String) -> Self {
        let violation = Violation {
            field: field.into(),
            reason: detail.clone(),
        };
        Self::new(StatusCode::GONE, "Revision is no longer kept", detail).with(Violations(vec![violation]))
    }

    /// A change that no entry of the log takes.
    pub(crate) fn change_too_large(bytes: usize, limit: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "Payload too large",
            format!("the change has {bytes} bytes, more than the {limit} that are done at once: do it in parts, by mesh, type or name"),
        )
    }

    /// There is no room for what was to be written; nothing was changed.
    pub(crate) fn no_space(detail: String) -> Self {
        let mut error = Self::new(StatusCode::INSUFFICIENT_STORAGE, "Insufficient storage", detail);
        error.0.retry_after = Some(RETRY_AFTER);
        error
    }

    /// A write that may or may not have happened.
    pub fn outcome_unknown(request_id: impl fmt::Display) -> Self {
        let mut error = Self::new(
            StatusCode::GATEWAY_TIMEOUT,
            "Outcome unknown",
            format!(
                "the write may or may not have been committed; to learn which, send the same request again with the header ursa-request-id: {request_id}"
            ),
        );
        error.0.retry_after = Some(RETRY_AFTER);
        error
    }

    /// The body, or the change it asks for, is too large.
    pub fn too_large(limit: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "Payload too large",
            format!("the request must not be larger than {limit} bytes"),
        )
    }

    /// The body did not arrive.
    pub fn body_timeout() -> Self {
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            "Request timeout",
            "the body of the request did not arrive in time",
        )
    }

    /// No such path.
    pub fn no_route() -> Self {
        Self::new(StatusCode::NOT_FOUND, "Not Found", "there is nothing at this path")
    }

    /// The path would be that of a kind that is not here.
    pub fn no_kind(detail: String) -> Self {
        Self::new(StatusCode::NOT_FOUND, "Not Found", detail)
    }

    /// Kuma answers this, and we will.
    pub fn not_yet(detail: &'static str) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, "Not yet in this version", detail)
    }

    /// The path does not know the method.
    pub fn no_method() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "Method not allowed",
            "the path does not support this method",
        )
    }

    /// Only JSON is answered.
    pub fn not_acceptable() -> Self {
        Self::new(
            StatusCode::NOT_ACCEPTABLE,
            "Not Acceptable",
            "the answer is application/json, which the Accept header excludes",
        )
    }

    /// Only JSON and YAML are read.
    pub fn unsupported_media_type() -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "Unsupported Media Type",
            "the Content-Type must be application/json or application/yaml",
        )
    }

    /// Something is broken here; whoever calls this logs what.
    pub fn internal(title: &'static str) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, title, "Internal Server Error")
    }

    pub fn status(&self) -> StatusCode {
        self.0.status
    }

    pub fn title(&self) -> &str {
        &self.0.title
    }
}

/// At most [`MAX_TEXT`] bytes of it.
fn short(text: Text) -> Text {
    if text.len() <= MAX_TEXT {
        return text;
    }
    let mut end = MAX_TEXT;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}...", &text[..end]).into()
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ({})", self.0.status.as_u16(), self.0.title, self.0.detail)?;
        if self.0.violations.is_empty() {
            Ok(())
        } else {
            write!(f, ": {}", self.0.violations)
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Error {}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let problem = &self.0;
        let body = Body {
            kind: "/std-errors",
            status: problem.status.as_u16(),
            title: &problem.title,
            detail: &problem.detail,
            invalid_parameters: problem
                .violations
                .0
                .iter()
                .map(|v| InvalidParameter {
                    field: &v.field,
                    reason: &v.reason,
                })
                .collect(),
            details: &problem.detail,
            causes: problem
                .violations
                .0
                .iter()
                .map(|v| Cause {
                    field: &v.field,
                    message: &v.reason,
                })
                .collect(),
        };
        let mut response = (problem.status, axum::Json(body)).into_response();
        if let Some(seconds) = problem.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if problem.challenge {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_from_requests_are_cut() {
        let error = Error::unparsable("Mesh", "ä".repeat(10_000));
        assert!(error.0.detail.len() <= MAX_TEXT + 3, "{}", error.0.detail.len());
        let many = Violations(
            (0..500)
                .map(|i| Violation {
                    field: i.to_string(),
                    reason: "x".repeat(9_999),
                })
                .collect(),
        );
        let error = Error::invalid("t", many);
        assert_eq!(error.0.violations.0.len(), MAX_VIOLATIONS);
        assert!(error.0.violations.0.iter().all(|v| v.reason.len() <= MAX_TEXT + 3));
    }
}
