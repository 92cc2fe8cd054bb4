//! How deeply a JSON text is nested, without parsing it: recursion of a parser is bounded by refusing the text before.

/// Deepest nesting of a request's body. Kuma's deepest resource has about a dozen levels.
pub(crate) const MAX_DEPTH: usize = 64;

/// Whether arrays and objects of `json` are nested deeper than `max`. Exact for JSON; anything else the parser refuses.
pub(crate) fn exceeds(json: &[u8], max: usize) -> bool {
    let mut depth = 0_usize;
    let mut in_text = false;
    let mut escaped = false;
    for byte in json {
        if in_text {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_text = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_text = true,
            b'{' | b'[' => {
                depth += 1;
                if depth > max {
                    return true;
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn real_depth(value: &Value) -> usize {
        match value {
            Value::Array(items) => 1 + items.iter().map(real_depth).max().unwrap_or(0),
            Value::Object(map) => 1 + map.values().map(real_depth).max().unwrap_or(0),
            _ => 0,
        }
    }

    fn arb_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<i64>().prop_map(Value::from),
            "[\\[\\]{}\"\\\\a]{0,8}".prop_map(Value::from),
            Just(Value::Null)
        ];
        leaf.prop_recursive(8, 64, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec(("[\\[\\]{}\"\\\\a]{0,4}", inner), 0..4).prop_map(|all| Value::Object(all.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn it_agrees_with_the_parser(value in arb_json()) {
            let text = value.to_string();
            let depth = real_depth(&value);
            prop_assert!(!exceeds(text.as_bytes(), depth));
            prop_assert!(depth == 0 || exceeds(text.as_bytes(), depth - 1));
        }
    }

    #[test]
    fn deep_text_is_found_early() {
        assert!(exceeds(&vec![b'['; 1_000_000], MAX_DEPTH));
        assert!(!exceeds(b"\"[[[[[[\\\"[[[\"", 0));
    }
}
