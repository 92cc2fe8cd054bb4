//! What is to be said to a peer of one type: the difference between what it was told and what is true, in pieces that fit a message.
//! In: the content told last, the newest, who listens, a limit. Out: one response's worth after the other. Pure.
//! Invariant: what is marked as told is in pieces that were given out, or that will be before anything newer is.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use ursa_model::Kind;

use crate::{
    distribution::Distribution,
    mapping::{Entry, Recipient},
};

/// Bytes of a resource in a response beside its content and twice its name: version, type_url, framing.
const FRAME: usize = 160;

/// Upserts, and names that are removed.
pub(super) type Delta = (Vec<Arc<Entry>>, Vec<Arc<str>>);

/// Bytes of resources in one response; zero is no limit.
#[derive(Clone, Copy, Debug)]
pub(super) enum Limit {
    /// A set may come in several responses.
    Chunks(usize),
    /// The first response must be the whole set; changes may come in several.
    Whole(usize),
}

/// What comes next of a type.
#[derive(Debug)]
pub(super) enum Next {
    Nothing,
    Response(Delta),
    /// So many bytes may not be sent. Said once per content.
    TooLarge(usize),
}

#[derive(Clone, Debug, Default)]
pub(super) struct TypeState {
    /// What the peer was told; `None` before the first response.
    pub(super) sent: Option<Distribution>,
    pub(super) in_flight: VecDeque<InFlight>,
    pub(super) refused: BTreeMap<Arc<str>, Refused>,
    /// Names to be sent again, a response per group.
    pub(super) retry: VecDeque<Vec<Arc<str>>>,
    /// Further pieces of what [`TypeState::sent`] says was told.
    rest: VecDeque<Delta>,
    /// The whole set of this content is too large to be sent.
    too_large: Option<u64>,
    /// The peer asked again: the next response is a complete set, which must be said before.
    announce: bool,
}

/// An unanswered response: the names and versions it held.
#[derive(Clone, Debug)]
pub(super) struct InFlight {
    pub(super) nonce: u64,
    pub(super) names: Vec<(Arc<str>, Arc<str>)>,
}

/// A resource that the peer refused, or that was in a response which it refused in part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub version: Arc<str>,
    pub text: String,
    /// Not told apart yet: the group is retried in halves.
    pub suspect: Option<u64>,
}

impl TypeState {
    /// `held`: what the peer holds already.
    pub(super) fn beginning_with(held: Option<Distribution>) -> Self {
        Self {
            sent: held,
            ..Self::default()
        }
    }

    /// Everything is to be sent anew.
    pub(super) fn again(&mut self) {
        self.sent = None;
        self.rest.clear();
        self.refused.clear();
        self.retry.clear();
        self.announce = true;
    }

    /// Whether the response that was just given out begins a complete set that the peer does not expect. Says so once.
    pub(super) fn announces_full_set(&mut self) -> bool {
        std::mem::take(&mut self.announce)
    }
    /// The peer was sent all of this content, or will be with what is in flight.
    pub(super) fn is_told(&self, content: &Distribution) -> bool {
        self.rest.is_empty() && self.sent.as_ref().is_some_and(|s| s.sequence() == content.sequence())
    }

    /// The next response. Marks it as sent.
    pub(super) fn next(&mut self, recipient: &Recipient, kind: Kind, content: &Distribution, limit: Limit) -> Next {
        if let Some(piece) = self.rest.pop_front() {
            return Next::Response(piece);
        }
        let visible = |d: &Distribution, name: &Arc<str>| d.get(&(kind, name.clone())).filter(|e| recipient.sees(e)).cloned();
        let Some(sent) = self.sent.clone() else {
            return self.first(recipient, kind, content, limit);
        };
        let mut upserts = Vec::new();
        let mut removals = Vec::new();
        for name in content.changed_since(&sent, kind) {
            match (visible(&sent, &name), visible(content, &name)) {
                (old, Some(new)) if old.as_ref().is_none_or(|o| o.version != new.version) => upserts.push(new),
                (Some(_), None) => removals.push(name),
                _ => {}
            }
        }
        self.sent = Some(content.clone());
        for name in upserts.iter().map(|e| &e.name).chain(&removals) {
            self.refused.remove(name);
        }
        if !upserts.is_empty() || !removals.is_empty() {
            let (Limit::Chunks(max) | Limit::Whole(max)) = limit;
            return self.pieces(upserts, removals, max);
        }
        // Retries come after news.
        while let Some(group) = self.retry.pop_front() {
            let again: Vec<_> = group
                .iter()
                .filter(|n| self.refused.contains_key(*n))
                .filter_map(|n| visible(content, n))
                .collect();
            if !again.is_empty() {
                return Next::Response((again, Vec::new()));
            }
        }
        Next::Nothing
    }

    /// The complete set.
    fn first(&mut self, recipient: &Recipient, kind: Kind, content: &Distribution, limit: Limit) -> Next {
        if self.too_large == Some(content.sequence()) && matches!(limit, Limit::Whole(_)) {
            return Next::Nothing;
        }
        let all: Vec<_> = content
            .of_kind(kind)
            .filter(|(_, e)| recipient.sees(e))
            .map(|(_, e)| e.clone())
            .collect();
        let bytes: usize = all.iter().map(|e| size(e)).sum();
        match limit {
            Limit::Whole(max) if max > 0 && bytes > max => {
                let news = self.too_large.is_none();
                self.too_large = Some(content.sequence());
                if news { Next::TooLarge(bytes) } else { Next::Nothing }
            }
            Limit::Whole(_) => {
                self.too_large = None;
                self.sent = Some(content.clone());
                Next::Response((all, Vec::new()))
            }
            Limit::Chunks(max) => {
                self.too_large = None;
                self.sent = Some(content.clone());
                self.pieces(all, Vec::new(), max)
            }
        }
    }

    /// Gives the first piece out and keeps the others.
    fn pieces(&mut self, upserts: Vec<Arc<Entry>>, removals: Vec<Arc<str>>, max: usize) -> Next {
        let max = if max == 0 { usize::MAX } else { max };
        let mut piece: Delta = Default::default();
        let mut bytes = 0_usize;
        let mut add = |piece: &mut Delta, cost: usize, rest: &mut VecDeque<Delta>| {
            if bytes.saturating_add(cost) > max && bytes > 0 {
                rest.push_back(std::mem::take(piece));
                bytes = 0;
            }
            bytes = bytes.saturating_add(cost);
        };
        for entry in upserts {
            add(&mut piece, size(&entry), &mut self.rest);
            piece.0.push(entry);
        }
        for name in removals {
            add(&mut piece, name.len() + 8, &mut self.rest);
            piece.1.push(name);
        }
        self.rest.push_back(piece);
        self.rest.pop_front().map_or(Next::Nothing, Next::Response)
    }
}

fn size(entry: &Entry) -> usize {
    entry.bytes.len() + 2 * entry.name.len() + FRAME
}
