//! Single values at the edges of what is allowed, and beyond.

use proptest::{prelude::*, sample::select};
use serde_json::{Map, Value, json};

pub fn pick(of: &'static [&'static str]) -> impl Strategy<Value = String> + Clone {
    select(of).prop_map(str::to_owned)
}

/// An object with some of these fields.
pub fn some_of(fields: Vec<(&'static str, BoxedStrategy<Value>)>) -> BoxedStrategy<Value> {
    let (names, values): (Vec<_>, Vec<_>) = fields.into_iter().unzip();
    let count = names.len();
    (values, prop::collection::vec(prop::bool::weighted(0.6), count))
        .prop_map(move |(values, chosen)| {
            let fields = names.iter().zip(values).zip(chosen).filter(|(_, chosen)| *chosen);
            Value::Object(fields.map(|((name, value), _)| ((*name).to_owned(), value)).collect::<Map<_, _>>())
        })
        .boxed()
}

pub fn duration() -> BoxedStrategy<Value> {
    select(
        &[
            "0s",
            "1ns",
            "999ns",
            "1us",
            "500us",
            "999us",
            "1ms",
            "1.5ms",
            "1999us",
            "10ms",
            "1s",
            "1.0000001s",
            "24h",
            "8760h",
            "1000000h",
            "2562047h",
            "2562047h47m16.854775807s",
        ][..],
    )
    .prop_map(|d| json!(d))
    .boxed()
}

pub fn number() -> BoxedStrategy<Value> {
    select(&[0_u32, 1, 2, 3, 99, 100, 1_000, 65_535, 2_147_483_647, 2_147_483_648, 4_294_967_295][..])
        .prop_map(|n| json!(n))
        .boxed()
}

pub fn decimal() -> BoxedStrategy<Value> {
    select(vec![
        json!(0),
        json!(1),
        json!(100),
        json!("0"),
        json!("0.0000001"),
        json!("0.0001"),
        json!("1.9"),
        json!("99.999999"),
        json!("100.0"),
        json!("4294967295"),
        json!("2147483.648"),
        json!("9000000000000"),
    ])
    .boxed()
}

pub fn flag() -> BoxedStrategy<Value> {
    any::<bool>().prop_map(|b| json!(b)).boxed()
}

pub fn list(of: impl Strategy<Value = Value> + 'static, most: usize) -> BoxedStrategy<Value> {
    prop::collection::vec(of, 0..=most).prop_map(Value::from).boxed()
}

/// Texts in places where Envoy expects a header's value.
pub fn text() -> BoxedStrategy<String> {
    prop_oneof![
        pick(&[
            "",
            " ",
            "a",
            "a b",
            "\t",
            "\n",
            "a\r\nb",
            "\0",
            "\u{1}",
            "\u{7f}",
            "é",
            "日本",
            "\"",
            "\\",
            "\\1",
            "100%",
            "%",
            "%%",
            "%%%",
            "% %",
            "%a%",
            "%UNKNOWN%",
            "%REQ(x-y)%",
            "%REQ(x-y?z):12%",
            "%REQ()%",
            "%REQ%",
            "%REQ(x-y",
            "%REQ(x:y)%",
            "%START_TIME%",
            "%START_TIME(%Y)%",
            "%START_TIME(%s.%3f)%",
            "%START_TIME(%)%",
            "%PROTOCOL%",
            "%PROTOCOL(x)%",
            "%PROTOCOL:3%",
            "%PROTOCOL:%",
            "%DOWNSTREAM_PEER_URI_SAN%",
            "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
            "%DYNAMIC_METADATA(a:b)%",
            "%DYNAMIC_METADATA()%",
            "%DYNAMIC_METADATA%",
            "%FILTER_STATE(a)%",
            "%FILTER_STATE(a:PLAIN)%",
            "%FILTER_STATE(a:x)%",
            "%PER_REQUEST_STATE(a)%",
            "%HOSTNAME%",
            "%ENVIRONMENT(HOME)%",
            "%ENVIRONMENT%",
            "%UPSTREAM_METADATA([\"a\", \"b\"])%",
            "%UPSTREAM_METADATA(a:b)%",
            "%RESPONSE_CODE%",
            "%TRAILER(x)%",
            "%RESP(x)%",
            "%CEL(request.path)%",
            "%CEL(%",
            "%QUERY_PARAM(a)%",
            "%QUERY_PARAM%",
            "%DURATION%",
            "%BYTES_SENT%",
            "%REQ_WITHOUT_QUERY(:PATH)%",
            "%REQ(:PATH)%",
            "%STREAM_ID%",
            "%COMMON_DURATION(a:b:c)%",
            "%COMMON_DURATION(DS_RX_BEG:DS_RX_END:ms)%",
            "%DOWNSTREAM_PEER_CERT_V_START(%b)%",
            "%DOWNSTREAM_PEER_CERT_V_START%",
            "%VIRTUAL_CLUSTER_NAME%",
            "%METADATA(ROUTE:a:b)%",
            "%METADATA(X:a)%",
            "%REQ(x)%%",
            "x%REQ(a)%y",
            "%REQ(a)%%REQ(b)%",
            "50% of %REQ(a)%",
            "%REQ(a)::%",
            "%REQ(a?b?c)%",
            "%REQ(a|b)%",
            "%PATH(WQ:ORIG)%",
            "%PATH%",
        ]),
        "[%A-Z_()a-z:?0-9 ]{0,16}",
        Just("x".repeat(4096)),
    ]
    .boxed()
}

pub fn header_name() -> impl Strategy<Value = String> + Clone {
    pick(&[
        "a",
        "x-a",
        "x-b",
        "x-c",
        "9",
        "!#$%&'*+-.^_`|~",
        "",
        "A",
        "host",
        ":path",
        ":authority",
        "a:b",
        "a b",
        "content-length",
        "transfer-encoding",
        "connection",
        "te",
        "x-envoy-max-retries",
        "x-forwarded-for",
        "cookie",
        "é",
    ])
}

pub fn regex() -> BoxedStrategy<String> {
    prop_oneof![2 => pick(&["/a", ".*", "[0-9]+", "(?i)x", "\\d{2}"]), 1 => arb_regex()].boxed()
}

/// Texts that may be regular expressions.
pub fn arb_regex() -> BoxedStrategy<String> {
    let pieces = pick(&[
        "a",
        "b",
        ".",
        "^",
        "$",
        "(",
        ")",
        "(?:",
        "(?P<n>",
        "(?P<m>",
        "(?<k>",
        "(?i)",
        "(?i-s:",
        "(?-)",
        "(?)",
        "(?x)",
        "(?=",
        "(?!",
        "(?<=",
        "(?U)",
        "[",
        "]",
        "[^",
        "[a-z]",
        "[z-a]",
        "[]a]",
        "[a-]",
        "[a-\\d]",
        "[\\b]",
        "[[:alpha:]]",
        "[[:foo:]]",
        "[:alpha:]",
        "[\\w-]",
        "{",
        "}",
        "{2}",
        "{2,3}",
        "{2,}",
        "{,3}",
        "{3,2}",
        "{02}",
        "{1000}",
        "{1001}",
        "{30}",
        "{34}",
        "*",
        "+",
        "?",
        "*?",
        "+?",
        "??",
        "|",
        "\\",
        "\\d",
        "\\W",
        "\\b",
        "\\B",
        "\\A",
        "\\z",
        "\\Z",
        "\\C",
        "\\Q",
        "\\E",
        "\\pL",
        "\\PN",
        "\\p{Greek}",
        "\\p{^Lu}",
        "\\p{Foo}",
        "\\p{",
        "\\pX",
        "\\1",
        "\\01",
        "\\12",
        "\\8",
        "\\123",
        "\\x41",
        "\\x4",
        "\\x{10FFFF}",
        "\\x{110000}",
        "\\x{}",
        "\\n",
        "\\_",
        "\\/",
        "\\-",
        "\\é",
        "\\u0041",
        "\\<",
        "\\k<n>",
        "é",
        "-",
        ",",
        ":",
        "/",
        " ",
        "=",
        "\\c",
        "\\e",
        "\\h",
        "\\K",
        "\\X",
        "(((",
        ")))",
        "()",
        "(|)",
        "&&",
        "--",
        "\t",
        "#",
    ]);
    prop_oneof![
        3 => prop::collection::vec(pieces, 1..8).prop_map(|p| p.concat()),
        1 => "[ab(|)\\[\\]{}*+?\\\\^$,0-3:PQEdwp<>=!i.-]{1,10}",
    ]
    .boxed()
}

pub fn path() -> impl Strategy<Value = String> + Clone {
    prop_oneof![
        pick(&[
            "/",
            "/a",
            "/a/b",
            "a",
            "",
            "//",
            "/a/",
            "/a b",
            "/a?b=c",
            "/a#b",
            "/%2f",
            "/é",
            "/a\n",
            "/a\r",
            "/\0",
            "/*",
            "/a/../b",
            "/a;b",
            "/\\1",
            "/\\",
            "/%",
            "/{id}",
            "/%REQ(a)%",
            "\\0",
            "?",
            "#",
        ]),
        Just(format!("/{}", "a".repeat(1023))),
    ]
}

pub fn hostname() -> impl Strategy<Value = String> + Clone {
    prop_oneof![
        pick(&["a", "a.test", "A.test", "1.2.3.4", "a_b", "*.a", "", "-a", "a:80", "::1", "a\nb"]),
        Just(format!("{}.test", "a".repeat(63))),
        Just("a.".repeat(126) + "b"),
    ]
}
