//! A revision as text: `<history>:<revision>`, in `system_version_info`. Kuma leaves that field empty and ignores it.

use ursa_state::GlobalRevision;

/// `<32 hexadecimal digits>:<decimal number>`.
pub(crate) fn format(at: GlobalRevision) -> String {
    format!("{}:{}", at.history, at.revision)
}

/// The other way; `None` when it is anything else.
pub(crate) fn parse(text: &str) -> Option<GlobalRevision> {
    let (history, revision) = text.split_once(':')?;
    Some(GlobalRevision {
        history: history.parse().ok()?,
        revision: revision.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ursa_state::HistoryId;

    #[test]
    fn text_and_back() {
        let at = GlobalRevision {
            history: HistoryId(0xab),
            revision: 17,
        };
        assert_eq!(format(at), "000000000000000000000000000000ab:17");
        assert_eq!(parse(&format(at)), Some(at));
        for bad in [
            "",
            "17",
            ":17",
            "ab:17",
            "000000000000000000000000000000ab:",
            "000000000000000000000000000000ab:x",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
