//! Reads the caller's identity out of `x-forwarded-client-cert`.
//!
//! In: the header's value. Out: the URI of the last element, which the nearest sidecar wrote.
//! Source: Envoy documentation, "x-forwarded-client-cert": elements separated by `,`, pairs by `;`, values with either are quoted.

/// The `URI` of the last element.
pub(super) fn caller(header: &str) -> Option<String> {
    let last = split_outside_quotes(header, ',').pop()?;
    split_outside_quotes(last, ';').into_iter().find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        key.trim()
            .eq_ignore_ascii_case("uri")
            .then(|| value.trim().trim_matches('"').to_owned())
    })
}

fn split_outside_quotes(text: &str, at: char) -> Vec<&str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(|c: char| {
        let cut = c == at && !quoted;
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = quoted,
            '"' => quoted = !quoted,
            _ => {}
        }
        cut
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::caller;

    #[test]
    fn the_uri_of_the_last_element_is_the_caller() {
        let by = "By=spiffe://default.west.mesh.local/workload/backend;Hash=ab;URI=spiffe://default.east.mesh.local/workload/frontend";
        assert_eq!(caller(by).as_deref(), Some("spiffe://default.east.mesh.local/workload/frontend"));
        assert_eq!(
            caller(&format!("URI=spiffe://forged,{by}")).as_deref(),
            Some("spiffe://default.east.mesh.local/workload/frontend")
        );
    }

    #[test]
    fn quoted_separators_do_not_separate() {
        assert_eq!(
            caller(r#"Subject="O=a,b;URI=x\",URI=y";URI=spiffe://real"#).as_deref(),
            Some("spiffe://real")
        );
    }

    #[test]
    fn no_uri_is_no_caller() {
        assert_eq!(caller(""), None);
        assert_eq!(caller("By=spiffe://a;Hash=1"), None);
    }
}
