//! Authentication and redirection: what lets an initiator in, and what keeps it out.

use crate::peer::{keys, Peer};
use crate::{serve, IQN};
use md5::{Digest, Md5};
use playhead_target::iscsi::{Chap, Credentials, Limits, Redirect, Server, User};
use playhead_wire::iscsi::request::{Request, TextRequest};
use playhead_wire::iscsi::response::Response;
use playhead_wire::iscsi::{binary, text, RESERVED_TAG};

pub(crate) const SECRET: &str = "a-secret-of-the-host";
pub(crate) const TARGET_SECRET: &str = "a-secret-of-the-array";
/// As [`keys`] names the initiator.
const PEER: &str = "iqn.2026-01.org.example:peer";
const INITIATOR: (&str, &str) = ("InitiatorName", PEER);

pub(crate) fn chap(user: &str) -> Chap {
    let user_of =
        |name: &str, secret: &str| User { name: name.to_owned(), secret: secret.as_bytes().to_vec() };
    Chap { initiator: user_of(user, SECRET), target: Some(user_of("array", TARGET_SECRET)) }
}

fn protect(server: &Server, required: bool) {
    let credentials = Credentials::new(required, None, [(PEER.to_owned(), chap("host"))]).unwrap();
    server.set_credentials(credentials);
}

fn md5(id: u8, secret: &str, challenge: &[u8]) -> Vec<u8> {
    Md5::new().chain_update([id]).chain_update(secret).chain_update(challenge).finalize().to_vec()
}

fn value<'a>(pairs: &'a [(String, String)], key: &str) -> &'a str {
    &pairs.iter().find(|(k, _)| k == key).unwrap_or_else(|| panic!("no {key} in {pairs:?}")).1
}

/// Goes to the point where the challenge is to be answered: its identifier and itself.
fn challenged(peer: &mut Peer, names: &[(&str, &str)]) -> (u8, Vec<u8>) {
    let mut first = names.to_vec();
    first.push(("AuthMethod", "CHAP,None"));
    let (response, pairs) = peer.login_step((0, 1), true, &first);
    assert!(matches!(response, Response::Login { transit: false, status: 0, .. }), "{response:?}");
    assert_eq!(value(&pairs, "AuthMethod"), "CHAP");
    let (_, pairs) = peer.login_step((0, 1), true, &[("CHAP_A", "5")]);
    assert_eq!(value(&pairs, "CHAP_A"), "5");
    (value(&pairs, "CHAP_I").parse().unwrap(), binary::parse(value(&pairs, "CHAP_C")).unwrap())
}

fn prove(
    peer: &mut Peer,
    names: &[(&str, &str)],
    secret: &str,
    more: &[(&str, &str)],
) -> (u16, Vec<(String, String)>) {
    let (id, challenge) = challenged(peer, names);
    let response = binary::emit_hex(&md5(id, secret, &challenge));
    let mut proof = vec![("CHAP_N", "host"), ("CHAP_R", response.as_str())];
    proof.extend_from_slice(more);
    let (response, pairs) = peer.login_step((0, 1), true, &proof);
    (Peer::status(&response), pairs)
}

#[test]
fn an_initiator_with_credentials_gets_in_by_proving_itself_and_in_no_other_way() {
    let (server, _disk) = serve(Limits::default());
    protect(&server, false);
    let names = keys(IQN, &[]);
    let mut peer = Peer::connect(server.address());
    let own = binary::emit_base64(&[0x5a; 16]);
    let (status, pairs) = prove(&mut peer, &names, SECRET, &[("CHAP_I", "77"), ("CHAP_C", &own)]);
    assert_eq!(status, 0);
    assert_eq!(value(&pairs, "CHAP_N"), "array");
    assert_eq!(binary::parse(value(&pairs, "CHAP_R")), Some(md5(77, TARGET_SECRET, &[0x5a; 16])));
    let (response, _) = peer.login_step((1, 3), true, &[]);
    assert!(matches!(response, Response::Login { transit: true, status: 0, tsih: 1.., .. }), "{response:?}");
    peer.ready();
    // Not with another secret, not without CHAP, not past the stage, not straight to the full feature phase.
    assert_eq!(prove(&mut Peer::connect(server.address()), &names, "wrong", &[]).0, 0x0201);
    let mut peer = Peer::connect(server.address());
    assert_eq!(peer.login(&names), 0x0201);
    for (next, method) in [(1, "None"), (3, "None"), (3, "KRB5,SPKM1")] {
        let mut peer = Peer::connect(server.address());
        let mut first = names.clone();
        first.push(("AuthMethod", method));
        assert_eq!(Peer::status(&peer.login_step((0, next), true, &first).0), 0x0201);
        assert!(peer.ends());
    }
    // Nor by leaving the stage with the challenge unanswered.
    let mut peer = Peer::connect(server.address());
    challenged(&mut peer, &names);
    assert_eq!(Peer::status(&peer.login_step((0, 3), true, &[]).0), 0x0201);
    let mut peer = Peer::connect(server.address());
    challenged(&mut peer, &names);
    assert_eq!(Peer::status(&peer.login_step((1, 3), true, &[]).0), 0x0200);
    // Its own challenge sent back.
    let mut peer = Peer::connect(server.address());
    let (id, challenge) = challenged(&mut peer, &names);
    let (right, back) = (binary::emit_hex(&md5(id, SECRET, &challenge)), binary::emit_hex(&challenge));
    let id = id.to_string();
    let proof = [("CHAP_N", "host"), ("CHAP_R", &*right), ("CHAP_I", &*id), ("CHAP_C", &*back)];
    assert_eq!(Peer::status(&peer.login_step((0, 1), true, &proof).0), 0x0201);
    // Counted when the connection has ended, which the peer may see first.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while server.authentication_failures() < 7 && std::time::Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert_eq!(server.authentication_failures(), 7);
    // Others come as before, unless all must prove themselves.
    let other = [("InitiatorName", "iqn.2026-01.org.example:other"), ("TargetName", IQN)];
    assert_eq!(Peer::connect(server.address()).login(&other), 0);
    protect(&server, true);
    assert_eq!(Peer::connect(server.address()).login(&other), 0x0201);
    assert_eq!(prove(&mut Peer::connect(server.address()), &other, SECRET, &[]).0, 0x0201);
}

#[test]
fn strangers_learn_nothing_of_targets_before_they_have_proved_themselves() {
    let (server, _disk) = serve(Limits::default());
    protect(&server, true);
    let nobody = keys("iqn.2026-01.org.playhead:nobody", &[]);
    assert_eq!(prove(&mut Peer::connect(server.address()), &nobody, "wrong", &[]).0, 0x0201);
    assert_eq!(prove(&mut Peer::connect(server.address()), &nobody, SECRET, &[]).0, 0x0203);
}

#[test]
fn discovery_has_credentials_of_its_own() {
    let (server, _disk) = serve(Limits::default());
    let discovery = [INITIATOR, ("SessionType", "Discovery")];
    protect(&server, false);
    assert_eq!(Peer::connect(server.address()).login(&discovery), 0);
    server.set_credentials(Credentials::new(false, Some(chap("host")), []).unwrap());
    assert_eq!(Peer::connect(server.address()).login(&discovery), 0x0201);
    let mut peer = Peer::connect(server.address());
    assert_eq!(prove(&mut peer, &discovery, SECRET, &[]).0, 0);
    assert_eq!(Peer::status(&peer.login_step((1, 3), true, &[]).0), 0);
    assert_eq!(Peer::connect(server.address()).login(&keys(IQN, &[])), 0, "sessions are another matter");
}

/// The addresses that discovery names for the target.
fn discovered(server: &Server) -> Vec<(String, String)> {
    let mut peer = Peer::connect(server.address());
    assert_eq!(peer.login(&[INITIATOR, ("SessionType", "Discovery")]), 0);
    let request = TextRequest {
        immediate: true,
        is_final: true,
        continues: false,
        lun: [0; 8],
        itt: 5,
        ttt: RESERVED_TAG,
        cmd_sn: peer.cmd_sn,
        exp_stat_sn: 0,
    };
    peer.send(&Request::Text(request), b"SendTargets=All\0");
    let data = peer.receive().unwrap().data;
    let pairs: Vec<_> = text::pairs(&data).map(|pair| pair.unwrap().1.to_owned()).collect();
    pairs.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect()
}

#[test]
fn logins_are_sent_elsewhere_once_they_are_entitled_to_know() {
    let (server, _disk) = serve(Limits::default());
    let here = format!("{},1", server.address());
    for (permanent, status, told) in [(false, 0x0101, here.as_str()), (true, 0x0102, "[fd00::7]:3261,1")] {
        server.set_redirect(IQN, Some(Redirect::new("[fd00::7]:3261", permanent).unwrap()));
        let mut peer = Peer::connect(server.address());
        let (response, pairs) = peer.login_step((1, 3), true, &keys(IQN, &[]));
        assert_eq!(Peer::status(&response), status);
        assert_eq!(pairs, [("TargetAddress".to_owned(), "[fd00::7]:3261".to_owned())]);
        assert!(peer.ends());
        assert_eq!(discovered(&server), [(IQN.to_owned(), told.to_owned())]);
    }
    // With credentials, after they are shown.
    protect(&server, true);
    assert_eq!(prove(&mut Peer::connect(server.address()), &keys(IQN, &[]), "wrong", &[]).0, 0x0201);
    let (status, pairs) = prove(&mut Peer::connect(server.address()), &keys(IQN, &[]), SECRET, &[]);
    assert_eq!((status, value(&pairs, "TargetAddress")), (0x0102, "[fd00::7]:3261"));
    server.set_credentials(Credentials::default());
    server.set_redirect(IQN, None);
    assert_eq!(Peer::connect(server.address()).login(&keys(IQN, &[])), 0);
    // A target that is here no longer.
    let gone = "iqn.2026-01.org.playhead:gone";
    server.set_redirect(gone, Some(Redirect::new("10.9.8.7", true).unwrap()));
    assert_eq!(Peer::connect(server.address()).login(&keys(gone, &[])), 0x0102);
    assert_eq!(discovered(&server)[0], (gone.to_owned(), "10.9.8.7,1".to_owned()));
}
