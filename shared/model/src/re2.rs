//! Whether a regular expression is one that Envoy compiles. Envoy's engine is RE2, and it refuses the whole route configuration
//! for one expression that RE2 does not take, so such an expression must not get past a write.
//! In: a pattern. Out: why RE2 would refuse it. Invariant: what is accepted here compiles in RE2, also within its memory; the few
//! expressions refused beyond that use character classes with uncommon names.
//! Source: <https://github.com/google/re2/wiki/Syntax>, Perl syntax on bytes (Latin-1), as Envoy 1.40 was seen to compile them;
//! RE2's limits: repetitions of at most 1000, nested ones multiplied, and a program of at most 8 MiB * 2/3 / 4 / 16 instructions.
//! A test compares this with a real Envoy.
//! No crate: those of Rust accept other expressions (`a**`, `(?x)`) and refuse some that RE2 takes (`/{id}`, `\Q`).

use std::collections::BTreeSet;

/// RE2's bound of a repetition, and of the product of nested ones.
const MAX_REPEAT: u64 = 1_000;
/// RE2's bound of nested groups is 1000.
const MAX_DEPTH: usize = 250;
/// Most instructions, as estimated here: half of what RE2 can hold (87,000), since this is an estimate.
const MAX_COST: u64 = 40_000;
/// Instructions of a class with a name, at most: of 256 bytes, none of them is more than a dozen ranges.
const NAMED_CLASS: u64 = 24;
/// Instructions of `.`, of a range, and of an assertion.
const RANGE: u64 = 4;
/// Instructions of a byte, with its other case.
const BYTE: u64 = 2;

/// General categories of Unicode, and the scripts that RE2 knows and somebody may write.
const UNICODE: [&str; 57] = [
    "Any",
    "C",
    "Cc",
    "Cf",
    "Co",
    "Cs",
    "L",
    "Ll",
    "Lm",
    "Lo",
    "Lt",
    "Lu",
    "M",
    "Mc",
    "Me",
    "Mn",
    "N",
    "Nd",
    "Nl",
    "No",
    "P",
    "Pc",
    "Pd",
    "Pe",
    "Pf",
    "Pi",
    "Po",
    "Ps",
    "S",
    "Sc",
    "Sk",
    "Sm",
    "So",
    "Z",
    "Zl",
    "Zp",
    "Zs",
    "Arabic",
    "Armenian",
    "Bengali",
    "Common",
    "Cyrillic",
    "Devanagari",
    "Ethiopic",
    "Georgian",
    "Greek",
    "Gujarati",
    "Han",
    "Hangul",
    "Hebrew",
    "Hiragana",
    "Inherited",
    "Katakana",
    "Khmer",
    "Latin",
    "Tamil",
    "Thai",
];

const POSIX: [&str; 14] = [
    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space", "upper", "word", "xdigit",
];

/// Why RE2 does not take a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("no argument for repetition operator")]
    NothingToRepeat,
    #[error("bad repetition operator: one follows another")]
    StackedRepetition,
    #[error("bad repetition size: at most 1000, nested repetitions multiplied")]
    RepetitionSize,
    #[error("missing ) or unexpected )")]
    Parenthesis,
    #[error("invalid group: lookaround, backreferences and unknown flags are not supported")]
    Group,
    #[error("invalid escape sequence")]
    Escape,
    #[error("trailing backslash")]
    TrailingBackslash,
    #[error("missing closing ]")]
    Bracket,
    #[error("invalid character class or range")]
    Class,
    #[error("groups nest too deeply")]
    Nesting,
    #[error("pattern too large")]
    Size,
}

/// Checks a pattern.
pub fn check(pattern: &str) -> Result<(), Invalid> {
    let mut parser = Parser {
        rest: pattern,
        names: BTreeSet::new(),
    };
    let node = parser.alternatives(0)?;
    if !parser.rest.is_empty() {
        return Err(Invalid::Parenthesis);
    }
    if node.cost > MAX_COST {
        return Err(Invalid::Size);
    }
    Ok(())
}

/// What is known of a part of a pattern.
#[derive(Clone, Copy, Debug, Default)]
struct Node {
    /// Instructions, about.
    cost: u64,
    /// The greatest product of nested repetitions.
    repeats: u64,
}

impl Node {
    fn of(cost: u64) -> Self {
        Self { cost, repeats: 1 }
    }

    fn and(self, other: Self) -> Self {
        Self {
            cost: self.cost.saturating_add(other.cost),
            repeats: self.repeats.max(other.repeats),
        }
    }

    fn repeated(self, min: u64, max: Option<u64>) -> Result<Self, Invalid> {
        let times = max.unwrap_or(min);
        if min > MAX_REPEAT || times > MAX_REPEAT || times < min {
            return Err(Invalid::RepetitionSize);
        }
        let repeats = self.repeats.saturating_mul(times.max(1));
        if (min >= 2 || times >= 2) && repeats > MAX_REPEAT {
            return Err(Invalid::RepetitionSize);
        }
        Ok(Self {
            cost: self.cost.saturating_add(1).saturating_mul(times.max(1)),
            repeats,
        })
    }
}

/// Instructions of a character by itself.
fn bytes(c: char) -> u64 {
    BYTE * u64::try_from(c.len_utf8()).unwrap_or(1)
}

struct Parser<'a> {
    rest: &'a str,
    names: BTreeSet<&'a str>,
}

impl<'a> Parser<'a> {
    fn take(&mut self) -> Option<char> {
        let c = self.rest.chars().next()?;
        self.rest = &self.rest[c.len_utf8()..];
        Some(c)
    }

    fn skip(&mut self, text: &str) -> bool {
        match self.rest.strip_prefix(text) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// Up to the end, or a `)` that is left for the caller.
    fn alternatives(&mut self, depth: usize) -> Result<Node, Invalid> {
        if depth > MAX_DEPTH {
            return Err(Invalid::Nesting);
        }
        let mut all = Node::default();
        loop {
            all = all.and(self.sequence(depth)?).and(Node::of(1));
            if !self.skip("|") {
                return Ok(all);
            }
        }
    }

    fn sequence(&mut self, depth: usize) -> Result<Node, Invalid> {
        let mut done = Node::default();
        let mut last: Option<Node> = None;
        let mut last_is_repeated = false;
        while let Some(c) = self.rest.chars().next() {
            if matches!(c, '|' | ')') {
                break;
            }
            self.take();
            let repetition = match c {
                '*' | '+' => Some((u64::from(c == '+'), None)),
                '?' => Some((0, Some(1))),
                '{' => self.counts(),
                _ => None,
            };
            if let Some((min, max)) = repetition {
                self.skip("?");
                if last_is_repeated {
                    return Err(Invalid::StackedRepetition);
                }
                last = Some(last.ok_or(Invalid::NothingToRepeat)?.repeated(min, max)?);
                last_is_repeated = true;
                continue;
            }
            last_is_repeated = false;
            let node = match c {
                '(' => self.group(depth)?,
                '[' => Some(self.class()?),
                '.' => Some(Node::of(RANGE)),
                '\\' => self.escaped()?,
                _ => Some(Node::of(bytes(c))),
            };
            // Flags and an empty quotation are nothing by themselves.
            if let Some(node) = node {
                done = done.and(last.replace(node).unwrap_or_default());
            }
        }
        Ok(done.and(last.unwrap_or_default()))
    }

    /// The rest of `{n}`, `{n,}` or `{n,m}`; what is none of these is a text.
    #[allow(clippy::option_option, reason = "an upper bound may be absent")]
    fn counts(&mut self) -> Option<(u64, Option<u64>)> {
        let (inside, rest) = self.rest.split_once('}')?;
        let number = |s: &str| {
            let digits = !s.is_empty() && s.len() <= 9 && s.bytes().all(|c| c.is_ascii_digit());
            (digits && (s == "0" || !s.starts_with('0')))
                .then(|| s.parse::<u64>().ok())
                .flatten()
        };
        let counts = match inside.split_once(',') {
            None => {
                let n = number(inside)?;
                (n, Some(n))
            }
            Some((min, "")) => (number(min)?, None),
            Some((min, max)) => (number(min)?, Some(number(max)?)),
        };
        self.rest = rest;
        Some(counts)
    }

    /// After `(`. `None` for flags that stand alone.
    fn group(&mut self, depth: usize) -> Result<Option<Node>, Invalid> {
        if self.skip("?") && !self.name()? && self.flags()? {
            return Ok(None);
        }
        let inside = self.alternatives(depth + 1)?;
        if self.skip(")") {
            Ok(Some(inside.and(Node::of(2))))
        } else {
            Err(Invalid::Parenthesis)
        }
    }

    /// `P<name>` or `<name>`.
    fn name(&mut self) -> Result<bool, Invalid> {
        if !self.skip("P<") && !self.skip("<") {
            return Ok(false);
        }
        let (name, rest) = self.rest.split_once('>').ok_or(Invalid::Group)?;
        let good = !name.is_empty() && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_');
        if !good || !self.names.insert(name) {
            return Err(Invalid::Group);
        }
        self.rest = rest;
        Ok(true)
    }

    /// Flags up to `)` (then true) or `:`.
    fn flags(&mut self) -> Result<bool, Invalid> {
        let (mut negated, mut any) = (false, true);
        loop {
            match self.take() {
                Some('i' | 'm' | 's' | 'U') => any = true,
                Some('-') if !negated => (negated, any) = (true, false),
                Some(end @ (')' | ':')) if any => return Ok(end == ')'),
                _ => return Err(Invalid::Group),
            }
        }
    }

    /// After `\` outside of a class. `None` for an empty quotation.
    fn escaped(&mut self) -> Result<Option<Node>, Invalid> {
        if self.skip("Q") {
            let (text, rest) = self.rest.split_once("\\E").unwrap_or((self.rest, ""));
            self.rest = rest;
            // A repetition after the quotation is about its last character; that of all of it is not less.
            let cost = text.chars().map(bytes).sum();
            return Ok((cost > 0).then(|| Node::of(cost)));
        }
        if ["b", "B", "A", "z", "C"].iter().any(|simple| self.skip(simple)) {
            return Ok(Some(Node::of(RANGE)));
        }
        if let Some(class) = self.named_class()? {
            return Ok(Some(class));
        }
        self.escaped_character()?;
        Ok(Some(Node::of(BYTE)))
    }

    /// `\d` and its like, `\pN`, `\p{Name}`; the backslash is gone already.
    fn named_class(&mut self) -> Result<Option<Node>, Invalid> {
        if ["d", "s", "w", "D", "S", "W"].iter().any(|class| self.skip(class)) {
            return Ok(Some(Node::of(NAMED_CLASS)));
        }
        if !self.skip("p") && !self.skip("P") {
            return Ok(None);
        }
        let name: &'a str = if self.skip("{") {
            let (name, rest) = self.rest.split_once('}').ok_or(Invalid::Class)?;
            self.rest = rest;
            name.strip_prefix('^').unwrap_or(name)
        } else {
            let letter = self.rest;
            let c = self.take().ok_or(Invalid::Class)?;
            &letter[..c.len_utf8()]
        };
        if UNICODE.contains(&name) {
            Ok(Some(Node::of(NAMED_CLASS)))
        } else {
            Err(Invalid::Class)
        }
    }

    /// One character after a backslash.
    fn escaped_character(&mut self) -> Result<char, Invalid> {
        let c = self.take().ok_or(Invalid::TrailingBackslash)?;
        let octal = |c: char| ('0'..='7').contains(&c);
        match c {
            'n' => Ok('\n'),
            'r' => Ok('\r'),
            't' => Ok('\t'),
            'a' => Ok('\x07'),
            'f' => Ok('\x0c'),
            'v' => Ok('\x0b'),
            'x' => self.hexadecimal(),
            // A single digit would be a backreference.
            '1'..='7' if !self.rest.starts_with(octal) => Err(Invalid::Escape),
            '0'..='7' => {
                let mut value = u32::from(c) - u32::from('0');
                for _ in 0..2 {
                    if self.rest.starts_with(octal) {
                        value = value * 8 + self.take().map_or(0, |d| u32::from(d) - u32::from('0'));
                    }
                }
                char::from_u32(value).ok_or(Invalid::Escape)
            }
            '_' => Ok(c),
            _ if c.is_ascii() && !c.is_ascii_alphanumeric() => Ok(c),
            _ => Err(Invalid::Escape),
        }
    }

    fn hexadecimal(&mut self) -> Result<char, Invalid> {
        let digits = if self.skip("{") {
            let (digits, rest) = self.rest.split_once('}').ok_or(Invalid::Escape)?;
            self.rest = rest;
            digits
        } else {
            let digits = self.rest.get(..2).ok_or(Invalid::Escape)?;
            self.rest = &self.rest[2..];
            digits
        };
        let good = !digits.is_empty() && digits.bytes().all(|c| c.is_ascii_hexdigit());
        let value = u8::from_str_radix(digits, 16).ok().filter(|_| good).ok_or(Invalid::Escape)?;
        Ok(char::from(value))
    }

    /// After `[`.
    fn class(&mut self) -> Result<Node, Invalid> {
        let mut cost = if self.skip("^") { RANGE } else { BYTE };
        let mut first = true;
        while first || !self.rest.starts_with(']') {
            first = false;
            if self.rest.is_empty() {
                return Err(Invalid::Bracket);
            }
            if let Some(inside) = self.rest.strip_prefix("[:")
                && let Some((name, rest)) = inside.split_once(":]")
            {
                if !POSIX.contains(&name.strip_prefix('^').unwrap_or(name)) {
                    return Err(Invalid::Class);
                }
                self.rest = rest;
                cost += NAMED_CLASS;
                continue;
            }
            let whole = self.rest;
            if self.skip("\\") {
                if let Some(class) = self.named_class()? {
                    cost += class.cost;
                    continue;
                }
                self.rest = whole;
            }
            let low = self.member()?;
            let ends = self
                .rest
                .strip_prefix('-')
                .is_some_and(|after| !after.is_empty() && !after.starts_with(']'));
            if ends {
                self.skip("-");
                if self.member()? < low {
                    return Err(Invalid::Class);
                }
            }
            cost += if ends { RANGE } else { bytes(low) };
        }
        self.skip("]");
        Ok(Node::of(cost))
    }

    fn member(&mut self) -> Result<char, Invalid> {
        if self.skip("\\") {
            return self.escaped_character();
        }
        self.take().ok_or(Invalid::Bracket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_re2_takes() {
        for good in [
            "",
            "/users/[0-9]+",
            "^/a(b|c)*?$",
            "(?i)abc",
            "(?i-s:a.b)",
            "(?P<id>\\d+)/(?<rest>.*)",
            "/{id}",
            "a{,3}",
            "a{2,5}?",
            "a{1000}",
            "(a{10}){100}",
            "\\Qa**\\E+",
            "\\pL\\p{Greek}\\P{^Lu}",
            "[]a]",
            "[^]a]",
            "[a-]",
            "[[:alpha:]_-]",
            "\\x41\\x{fF}\\012\\_\\/",
            "^*",
            "é+",
            "a(?i)*",
            "()",
            "|a|",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn what_re2_refuses() {
        for (bad, why) in [
            ("*", Invalid::NothingToRepeat),
            ("a|*", Invalid::NothingToRepeat),
            ("(+)", Invalid::NothingToRepeat),
            ("a**", Invalid::StackedRepetition),
            ("a++", Invalid::StackedRepetition),
            ("a{2}{3}", Invalid::StackedRepetition),
            ("a{1001}", Invalid::RepetitionSize),
            ("a{3,2}", Invalid::RepetitionSize),
            ("(a{100}){11}", Invalid::RepetitionSize),
            ("(a", Invalid::Parenthesis),
            ("a)", Invalid::Parenthesis),
            ("(?=a)", Invalid::Group),
            ("(?<!a)b", Invalid::Group),
            ("(?x)a", Invalid::Group),
            ("(?P<n>a)(?P<n>b)", Invalid::Group),
            ("(?i-)", Invalid::Group),
            ("(a)\\1", Invalid::Escape),
            ("\\u0041", Invalid::Escape),
            ("[\\b]", Invalid::Escape),
            ("\\x{100}", Invalid::Escape),
            ("a\\", Invalid::TrailingBackslash),
            ("[a", Invalid::Bracket),
            ("[]", Invalid::Bracket),
            ("[z-a]", Invalid::Class),
            ("[[:foo:]]", Invalid::Class),
            ("\\p{Alphabetic}", Invalid::Class),
            ("(ab\\pL){1000}|[a-z0-9]{1000}", Invalid::Size),
        ] {
            assert_eq!(check(bad), Err(why), "{bad}");
        }
        assert_eq!(check(&"(".repeat(500)), Err(Invalid::Nesting));
    }
}
