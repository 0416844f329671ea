//! Logins and texts step by step: stages, keys over several PDUs, what may be said when, and which session it is for.

use crate::peer::{keys, Peer};
use crate::{serve, IQN};
use playhead_target::iscsi::Limits;
use playhead_wire::iscsi::request::{LoginRequest, Request, TextRequest};
use playhead_wire::iscsi::response::{reject, Response};
use playhead_wire::iscsi::{text, RESERVED_TAG};

type Pairs = Vec<(String, String)>;

fn has(pairs: &Pairs, key: &str, value: &str) -> bool {
    pairs.iter().any(|(k, v)| k == key && v == value)
}

fn text_of(pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut data = Vec::new();
    pairs.iter().for_each(|(key, value)| text::push(&mut data, key, value));
    data
}

fn pairs_of(data: &[u8]) -> Pairs {
    text::pairs(data).map(|pair| pair.map(|(k, v)| (k.to_owned(), v.to_owned())).unwrap()).collect()
}

/// Sends one login request and returns its answer: header and text.
fn send(peer: &mut Peer, request: LoginRequest, data: &[u8]) -> (Response, Vec<u8>) {
    peer.send(&Request::Login(request), data);
    let received = peer.receive().expect("a login response");
    (received.response, received.data)
}

#[test]
fn stages_follow_each_other_and_each_has_its_keys() {
    let (server, _disk) = serve(Limits::default());
    let mut peer = Peer::connect(server.address());
    let first =
        keys(IQN, &[("AuthMethod", "CHAP,None"), ("InitiatorAlias", "me"), ("HeaderDigest", "CRC32C")]);
    let (response, pairs) = peer.login_step((0, 1), false, &first);
    assert!(matches!(response, Response::Login { transit: false, current_stage: 0, status: 0, tsih: 0, .. }));
    assert!(has(&pairs, "AuthMethod", "None") && has(&pairs, "TargetPortalGroupTag", "1"));
    assert!(has(&pairs, "HeaderDigest", "Reject"), "operational keys have no place here");
    assert_eq!(pairs.len(), 3);
    let (response, pairs) = peer.login_step((0, 1), true, &[]);
    assert!(matches!(response, Response::Login { transit: true, current_stage: 0, next_stage: 1, .. }));
    assert!(pairs.is_empty());
    let more =
        [("MaxRecvDataSegmentLength", "4096"), ("FirstBurstLength", "65536"), ("MaxBurstLength", "8192")];
    let (response, pairs) = peer.login_step((1, 3), false, &more);
    assert!(matches!(response, Response::Login { transit: false, current_stage: 1, .. }));
    assert!(has(&pairs, "MaxBurstLength", "8192") && has(&pairs, "FirstBurstLength", "8192"), "{pairs:?}");
    assert!(has(&pairs, "MaxRecvDataSegmentLength", "1048576"));
    let (response, pairs) =
        peer.login_step((1, 3), true, &[("X-org.example.key", "1"), ("OFMarkInt", "1~2")]);
    assert!(matches!(response, Response::Login { transit: true, next_stage: 3, tsih: 1.., .. }));
    assert_eq!(pairs_of(&text_of(&[("X-org.example.key", "NotUnderstood"), ("OFMarkInt", "Reject")])), pairs);
    peer.ready();
}

#[test]
fn our_own_segment_length_is_told_once_asked_or_not() {
    let (server, _disk) = serve(Limits::default());
    for more in [&[][..], &[("MaxRecvDataSegmentLength", "65536")]] {
        let mut peer = Peer::connect(server.address());
        assert_eq!(peer.login(&keys(IQN, more)), 0);
        assert_eq!(peer.answers.iter().filter(|(key, _)| key == "MaxRecvDataSegmentLength").count(), 1);
    }
}

#[test]
fn text_may_come_in_pieces_cut_anywhere() {
    let (server, _disk) = serve(Limits::default());
    let whole = text_of(&keys(IQN, &[("HeaderDigest", "None"), ("MaxOutstandingR2T", "2")]));
    for cut in [1, 14, whole.len() / 2, whole.len() - 1] {
        let mut peer = Peer::connect(server.address());
        let request = LoginRequest { continues: true, ..peer.login_request((1, 0), false) };
        let (response, data) = send(&mut peer, request, &whole[..cut]);
        assert!(matches!(response, Response::Login { transit: false, continues: false, status: 0, .. }));
        assert!(data.is_empty(), "an answer before the question is whole");
        let request = peer.login_request((1, 3), true);
        let (response, data) = send(&mut peer, request, &whole[cut..]);
        assert!(
            matches!(response, Response::Login { transit: true, status: 0, .. }),
            "cut at {cut}: {response:?}"
        );
        assert!(has(&pairs_of(&data), "MaxOutstandingR2T", "2"));
    }
}

#[test]
fn a_long_answer_comes_in_pieces_too_and_the_stage_changes_with_the_last() {
    let (server, _disk) = serve(Limits::default());
    let mut peer = Peer::connect(server.address());
    let names: Vec<String> =
        (0..200).map(|i| format!("X-org.example.a-key-that-nobody-knows.{i:020}")).collect();
    let mut asked = keys(IQN, &[]);
    asked.extend(names.iter().map(|name| (name.as_str(), "1")));
    let whole = text_of(&asked);
    let mut parts = whole.chunks(8192).peekable();
    let mut answer = None;
    while let Some(part) = parts.next() {
        let last = parts.peek().is_none();
        let request = LoginRequest { continues: !last, ..peer.login_request((1, 3), last) };
        answer = Some(send(&mut peer, request, part));
    }
    let (mut response, mut all) = answer.unwrap();
    let mut pieces = 1;
    while matches!(response, Response::Login { continues: true, transit: false, .. }) {
        let request = peer.login_request((1, 3), true);
        let (next, data) = send(&mut peer, request, &[]);
        assert!(data.len() <= 8192);
        all.extend_from_slice(&data);
        response = next;
        pieces += 1;
    }
    assert!(matches!(response, Response::Login { transit: true, continues: false, status: 0, .. }));
    assert!(pieces > 1);
    let pairs = pairs_of(&all);
    assert!(names.iter().all(|name| has(&pairs, name, "NotUnderstood")));
    peer.ready();
}

#[test]
fn what_breaks_the_rules_of_a_login_ends_it_with_the_status_for_that() {
    let (server, _disk) = serve(Limits::default());
    let long = "x".repeat(256);
    let names = keys(IQN, &[]);
    let mut twice = names.clone();
    twice.extend([("MaxBurstLength", "8192"), ("MaxBurstLength", "8192")]);
    let too_long = keys(IQN, &[("InitiatorAlias", &long)]);
    for (keys, status) in [(&twice, 0x0200), (&too_long, 0x0200)] {
        assert_eq!(Peer::connect(server.address()).login(keys), status);
    }
    // Twice in two requests, and names that change.
    for again in [("MaxBurstLength", "8192"), ("TargetName", IQN), ("SessionType", "Discovery")] {
        let mut peer = Peer::connect(server.address());
        let mut first = names.clone();
        first.push(("MaxBurstLength", "8192"));
        if again.0 == "SessionType" {
            first.retain(|(key, _)| *key != "SessionType");
        }
        assert_eq!(Peer::status(&peer.login_step((1, 3), false, &first).0), 0);
        assert_eq!(Peer::status(&peer.login_step((1, 3), true, &[again]).0), 0x0200, "{again:?}");
        assert!(peer.ends());
    }
    // Text that is none, a stage that goes back, T with C, a stage that does not exist, another tag in between.
    let data = text_of(&names);
    let peer = Peer::connect(server.address());
    let plain = peer.login_request((1, 3), true);
    for (request, data) in [
        (plain, &b"InitiatorName\0"[..]),
        (LoginRequest { next_stage: 1, ..plain }, &data),
        (LoginRequest { continues: true, ..plain }, &data),
        (LoginRequest { current_stage: 2, ..plain }, &data),
        (LoginRequest { current_stage: 3, transit: false, ..plain }, &data),
    ] {
        let mut peer = Peer::connect(server.address());
        assert_eq!(Peer::status(&send(&mut peer, request, data).0), 0x0200, "{request:?}");
        assert!(peer.ends());
    }
    let mut peer = Peer::connect(server.address());
    assert_eq!(Peer::status(&peer.login_step((1, 3), false, &names).0), 0);
    assert_eq!(Peer::status(&send(&mut peer, LoginRequest { itt: 99, ..plain }, &[]).0), 0x0200);
    // Something else than a login.
    let mut peer = Peer::connect(server.address());
    let request = peer.scsi(&[0; 6], 0, &[]);
    peer.send(&Request::ScsiCommand(request), &[]);
    assert_eq!(Peer::status(&peer.receive().unwrap().response), 0x020b);
}

#[test]
fn a_tsih_reinstates_the_connection_of_a_session_that_exists_and_nothing_else() {
    let (server, _disk) = serve(Limits::default());
    let mut first = Peer::connect(server.address());
    let (response, _) = first.login_step((1, 3), true, &keys(IQN, &[]));
    let Response::Login { tsih, .. } = response else { panic!("{response:?}") };
    first.ready();
    let data = text_of(&keys(IQN, &[]));
    for (tsih, cid, isid, status) in [(tsih, 7, 1, 0x0206), (tsih + 1, 0, 1, 0x020a), (tsih, 0, 9, 0x020a)] {
        let mut peer = Peer::connect(server.address());
        peer.isid[5] = isid;
        let request = LoginRequest { tsih, cid, ..peer.login_request((1, 3), true) };
        assert_eq!(Peer::status(&send(&mut peer, request, &data).0), status);
    }
    first.ready();
    let mut again = Peer::connect(server.address());
    let request = LoginRequest { tsih, ..again.login_request((1, 3), true) };
    let (response, _) = send(&mut again, request, &data);
    assert!(
        matches!(response, Response::Login { status: 0, tsih: same, .. } if same == tsih),
        "{response:?}"
    );
    assert!(first.ends());
    again.ready();
    assert_eq!(server.sessions().len(), 1);
}

fn text_request(peer: &Peer, ttt: u32, is_final: bool, continues: bool) -> TextRequest {
    let cmd_sn = peer.cmd_sn;
    TextRequest { immediate: true, is_final, continues, lun: [0; 8], itt: 5, ttt, cmd_sn, exp_stat_sn: 0 }
}

#[test]
fn discovery_has_no_use_for_keys_of_transfers() {
    let (server, _disk) = serve(Limits::default());
    let mut peer = Peer::connect(server.address());
    // The session's type may stand behind what depends on it.
    let asked = [
        ("InitiatorName", "iqn.2026-01.org.example:peer"),
        ("MaxBurstLength", "8192"),
        ("TaskReporting", "RFC3720"),
        ("DefaultTime2Wait", "2"),
        ("SessionType", "Discovery"),
    ];
    assert_eq!(peer.login(&asked), 0);
    assert!(
        has(&peer.answers, "MaxBurstLength", "Irrelevant")
            && has(&peer.answers, "TaskReporting", "Irrelevant")
    );
    assert!(has(&peer.answers, "DefaultTime2Wait", "2"));
    assert!(!peer.answers.iter().any(|(key, _)| key == "TargetPortalGroupTag"));
    // In it, All and a name will do, nothing will not.
    let request = text_request(&peer, RESERVED_TAG, true, false);
    peer.send(&Request::Text(request), b"SendTargets=\0");
    assert_eq!(peer.receive().unwrap().response, Response::Reject { reason: reject::PROTOCOL });
    peer.send(&Request::Text(request), format!("SendTargets={IQN}\0").as_bytes());
    assert!(has(&pairs_of(&peer.receive().unwrap().data), "TargetName", IQN));
}

#[test]
fn texts_that_mean_nothing_are_rejected_and_the_session_lives_on() {
    let (server, _disk) = serve(Limits::default());
    let mut peer = Peer::session(server.address(), IQN, &[]);
    for bad in
        ["SendTargetsPlease=All", "SendTargets=Alle", "SendTargets=A", "sENDtARGETS=aLL", "SendTargets", "=x"]
    {
        let request = text_request(&peer, RESERVED_TAG, true, false);
        peer.send(&Request::Text(request), format!("{bad}\0").as_bytes());
        let received = peer.receive().unwrap();
        assert_eq!(received.response, Response::Reject { reason: reject::PROTOCOL }, "{bad}");
        assert_eq!(received.data.len(), 48);
    }
    let request = text_request(&peer, RESERVED_TAG, true, false);
    let asked = text_of(&[
        ("SendTargets", ""),
        ("Unheard", "of"),
        ("MaxBurstLength", "8192"),
        ("InitiatorName", "iqn.x"),
        ("InitiatorAlias", "me"),
        ("MaxRecvDataSegmentLength", "512"),
    ]);
    peer.send(&Request::Text(request), &asked);
    let received = peer.receive().unwrap();
    assert!(matches!(
        received.response,
        Response::Text { is_final: true, continues: false, ttt: RESERVED_TAG, .. }
    ));
    let pairs = pairs_of(&received.data);
    for (key, value) in [
        ("TargetName", IQN),
        ("Unheard", "NotUnderstood"),
        ("MaxBurstLength", "Reject"),
        ("InitiatorName", "Reject"),
        ("MaxRecvDataSegmentLength", "1048576"),
    ] {
        assert!(has(&pairs, key, value), "{key}: {pairs:?}");
    }
    // The new segment length is in force.
    assert_eq!(peer.read(0, 2048).data.len(), 2048);
    let request = peer.scsi(&crate::peer::cdb_10(0x28, 0, 2048), 2048, &[]);
    peer.send(&Request::ScsiCommand(request), &[]);
    for _ in 0..4 {
        assert_eq!(peer.receive().unwrap().data.len(), 512);
    }
}

#[test]
fn a_text_negotiation_goes_over_several_pdus_both_ways_and_may_begin_anew() {
    let (server, _disk) = serve(Limits::default());
    for number in 0..40 {
        server.add_target(&format!("iqn.2026-01.org.playhead:one-of-many.{number:02}")).unwrap();
    }
    let mut peer = Peer::connect(server.address());
    let asked = [
        ("InitiatorName", "iqn.2026-01.org.example:peer"),
        ("SessionType", "Discovery"),
        ("MaxRecvDataSegmentLength", "1024"),
    ];
    assert_eq!(peer.login(&asked), 0);
    let first = text_request(&peer, RESERVED_TAG, false, true);
    peer.send(&Request::Text(first), b"SendTar");
    let Response::Text { is_final: false, ttt, .. } = peer.receive().unwrap().response else { panic!() };
    assert_ne!(ttt, RESERVED_TAG);
    // Begun anew, the old tag is worth nothing.
    peer.send(&Request::Text(first), b"SendTargets=");
    let Response::Text { is_final: false, ttt: new, .. } = peer.receive().unwrap().response else { panic!() };
    let stale = text_request(&peer, ttt, true, false);
    peer.send(&Request::Text(stale), b"gets=All\0");
    assert!(matches!(peer.receive().unwrap().response, Response::Reject { reason: reject::PROTOCOL }));
    let mut request = text_request(&peer, new, true, false);
    let mut all = Vec::new();
    let mut sent = &b"All\0"[..];
    loop {
        peer.send(&Request::Text(request), sent);
        let received = peer.receive().unwrap();
        assert!(received.data.len() <= 1024);
        all.extend_from_slice(&received.data);
        match received.response {
            Response::Text { is_final: true, continues: false, ttt: RESERVED_TAG, .. } => break,
            Response::Text { is_final: false, continues: true, ttt, .. } => request.ttt = ttt,
            other => panic!("{other:?}"),
        }
        sent = &[];
    }
    assert_eq!(pairs_of(&all).iter().filter(|(key, _)| key == "TargetName").count(), 41);
}
