//! The table of bad input: each request gets its typed error, and nothing stored changes.

use super::*;

/// Who sends it.
pub(super) enum As {
    Admin,
    Nobody,
    Token(String),
}

pub(super) struct Row {
    pub(super) what: &'static str,
    pub(super) request: Request<Body>,
    pub(super) status: u16,
    pub(super) title: &'static str,
    /// Part of the answer.
    pub(super) says: &'static str,
}

pub(super) struct Table<'a> {
    pub(super) server: &'a Server,
    pub(super) rows: Vec<Row>,
}

impl<'a> Table<'a> {
    pub(super) fn of(server: &'a Server) -> Self {
        Self { server, rows: Vec::new() }
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn row(
        &mut self,
        what: &'static str,
        who: As,
        method: &str,
        path: &str,
        content: &str,
        body: impl Into<Body>,
        status: u16,
        title: &'static str,
        says: &'static str,
    ) {
        let mut request = Request::builder().method(method).uri(path);
        match who {
            As::Admin => request = request.header(header::AUTHORIZATION, format!("Bearer {}", self.server.admin)),
            As::Token(token) => request = request.header(header::AUTHORIZATION, format!("Bearer {token}")),
            As::Nobody => {}
        }
        if !content.is_empty() {
            request = request.header(header::CONTENT_TYPE, content);
        }
        self.rows.push(Row {
            what,
            request: request.body(body.into()).unwrap(),
            status,
            title,
            says,
        });
    }

    pub(super) async fn check(self) {
        let before = self.server.memory.fingerprint();
        for Row {
            what,
            request,
            status,
            title,
            says,
        } in self.rows
        {
            let got = self.server.send(request).await;
            let body = String::from_utf8_lossy(&got.bytes).into_owned();
            assert_eq!(got.status, status, "{what}: {body}");
            let json = got.json();
            assert_eq!(json["title"], title, "{what}: {body}");
            assert_eq!(
                (json["type"].as_str(), json["status"].as_u64()),
                (Some("/std-errors"), Some(u64::from(status))),
                "{what}"
            );
            assert_eq!(json["detail"], json["details"], "{what}");
            assert!(body.contains(says), "{what}: {body}");
            assert!(body.len() < 64 * 1024, "{what}: the answer has {} bytes", body.len());
            assert!(!got.header("ursa-revision").is_empty(), "{what}: no revision");
            assert_eq!(self.server.memory.fingerprint(), before, "{what}: something stored was changed");
        }
        self.server.get("/meshes/default").await.is(200);
    }
}

/// Rows as anybody sends them: `what, who, method, path, content type, body => status, title, part of the answer;`.
macro_rules! rows {
    ($table:ident; $($what:expr, $who:expr, $method:expr, $path:expr, $content:expr, $body:expr => $status:expr, $title:expr, $says:expr;)*) => {
        $($table.row($what, $who, $method, $path, $content, $body, $status, $title, $says);)*
    };
}

/// PUTs of JSON by the administrator: `what, path, body => status, title, part of the answer;`.
macro_rules! puts {
    ($table:ident; $($what:expr, $path:expr, $body:expr => $status:expr, $title:expr, $says:expr;)*) => {
        $($table.row($what, As::Admin, "PUT", $path, "application/json", $body, $status, $title, $says);)*
    };
}

/// GETs without a token: `what, path => status, title, part of the answer;`.
macro_rules! gets {
    ($table:ident; $($what:expr, $path:expr => $status:expr, $title:expr, $says:expr;)*) => {
        $($table.row($what, As::Nobody, "GET", $path, "", Body::empty(), $status, $title, $says);)*
    };
}

pub(super) use {gets, puts, rows};

pub(super) const MESHES: &str = "/meshes/m-1";
pub(super) const MTP: &str = "/meshes/default/meshtrafficpermissions/p";
pub(super) const BAD: &str = "Bad Request";
pub(super) const PROCESS: &str = "Could not process a resource";

pub(super) fn text(value: Value) -> String {
    value.to_string()
}

pub(super) fn labelled(labels: Value) -> String {
    let mut body = a_permission("default", "p");
    body["labels"] = labels;
    body.to_string()
}
