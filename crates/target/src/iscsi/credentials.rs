//! Who must prove itself with CHAP, and with what.

use super::ServerError;
use playhead_wire::iscsi::text::is_iscsi_name;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Longest name and secret, in bytes.
const MAX_BYTES: usize = 255;

/// A user and the secret it shares with this side. Its debug form does not show the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct User {
    /// CHAP_N.
    pub name: String,
    /// Never on the wire.
    pub secret: Vec<u8>,
}

impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("User").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What proves an initiator to this target and, if it asks, this target to the initiator (RFC 7143 12.1.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chap {
    /// The initiator, as it proves itself.
    pub initiator: User,
    /// The target, as it proves itself to this initiator.
    pub target: Option<User>,
}

/// Credentials of one initiator, as they are used.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) initiator: User,
    /// `None` if this target cannot prove itself, or must not: a secret that some initiator proves itself with as well would let
    /// one initiator have this target answer another's challenge.
    pub(super) target: Option<User>,
}

/// Who must prove itself. The default asks nobody.
#[derive(Debug, Default)]
pub struct Credentials {
    required: bool,
    discovery: Option<Arc<Known>>,
    initiators: HashMap<String, Arc<Known>>,
}

/// What a login has to bring.
#[derive(Debug, Clone)]
pub(super) struct Demand {
    /// What is known of the initiator.
    pub(super) known: Option<Arc<Known>>,
    /// AuthMethod=None will not do.
    pub(super) must: bool,
}

impl Credentials {
    /// An initiator in `initiators`, by iSCSI name, must prove itself; with `required` so must everyone, who is refused if unknown.
    /// Discovery takes `discovery` from whoever comes; without it, discovery is open, or with `required` wants the initiator's own.
    ///
    /// Errors: [`ServerError::BadCredentials`] for a name that is none, an empty or too long user or secret, or one secret for both ways.
    pub fn new(
        required: bool,
        discovery: Option<Chap>,
        initiators: impl IntoIterator<Item = (String, Chap)>,
    ) -> Result<Credentials, ServerError> {
        let initiators: HashMap<String, Chap> = initiators.into_iter().collect();
        let refuse = |whose: &str, detail: &str| {
            Err(ServerError::BadCredentials { whose: whose.to_owned(), detail: detail.to_owned() })
        };
        let named = discovery.iter().map(|chap| ("discovery", chap));
        let named = named.chain(initiators.iter().map(|(name, chap)| (name.as_str(), chap)));
        let mut secrets = HashSet::new();
        for (whose, chap) in named {
            if whose != "discovery" && !is_iscsi_name(whose) {
                return refuse(whose, "that is no iSCSI name");
            }
            for user in [Some(&chap.initiator), chap.target.as_ref()].into_iter().flatten() {
                let right = |len: usize| (1..=MAX_BYTES).contains(&len);
                if !right(user.name.len()) || !right(user.secret.len()) || user.name.contains('\0') {
                    return refuse(whose, "user and secret must have 1 to 255 bytes, and the user no NUL");
                }
            }
            if chap.target.as_ref().is_some_and(|target| target.secret == chap.initiator.secret) {
                return refuse(whose, "the two directions must not share a secret");
            }
            secrets.insert(chap.initiator.secret.clone());
        }
        let known = |chap: Chap| {
            let target = chap.target.filter(|target| !secrets.contains(&target.secret));
            Arc::new(Known { initiator: chap.initiator, target })
        };
        Ok(Credentials {
            required,
            discovery: discovery.map(known),
            initiators: initiators.into_iter().map(|(name, chap)| (name, known(chap))).collect(),
        })
    }

    /// What `initiator` has to bring to a login, or to a discovery.
    pub(super) fn demand(&self, initiator: &str, discovery: bool) -> Demand {
        let own = self.initiators.get(initiator);
        if discovery {
            let known = self.discovery.as_ref().or(own).cloned();
            return Demand { known, must: self.required || self.discovery.is_some() };
        }
        Demand { known: own.cloned(), must: self.required || own.is_some() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str, secret: &str) -> User {
        User { name: name.to_owned(), secret: secret.as_bytes().to_vec() }
    }

    fn chap(secret: &str, target: Option<&str>) -> Chap {
        Chap { initiator: user("host", secret), target: target.map(|secret| user("array", secret)) }
    }

    #[test]
    fn those_with_credentials_must_bring_them_and_the_others_only_where_all_must() {
        let initiators = || [("iqn.a".to_owned(), chap("secret of a", None))];
        let some = Credentials::new(false, None, initiators()).unwrap();
        assert!(some.demand("iqn.a", false).must && !some.demand("iqn.b", false).must);
        assert!(!some.demand("iqn.a", true).must);
        let all = Credentials::new(true, None, initiators()).unwrap();
        assert!(all.demand("iqn.b", false).must && all.demand("iqn.b", false).known.is_none());
        assert!(all.demand("iqn.a", true).known.is_some() && all.demand("iqn.b", true).must);
        let discovery = Credentials::new(false, Some(chap("of discovery", None)), []).unwrap();
        assert!(discovery.demand("iqn.b", true).must && !discovery.demand("iqn.b", false).must);
    }

    #[test]
    fn a_secret_that_serves_both_directions_is_refused_or_not_answered_with() {
        let refused = |chap| Credentials::new(false, Some(chap), []).is_err();
        assert!(
            refused(chap("same", Some("same"))) && refused(chap("", None)) && refused(chap("s", Some("")))
        );
        let two = [
            ("iqn.a".to_owned(), chap("secret of a", Some("secret of b"))),
            ("iqn.b".to_owned(), chap("secret of b", Some("the array's"))),
        ];
        let credentials = Credentials::new(false, None, two).unwrap();
        assert!(credentials.demand("iqn.a", false).known.unwrap().target.is_none());
        assert!(credentials.demand("iqn.b", false).known.unwrap().target.is_some());
        let shown = format!("{credentials:?}");
        assert!(shown.contains("array") && !shown.contains("secret of"), "{shown}");
    }
}
