//! Other people's initiators: libiscsi's tools and QEMU. They are part of what `make test` installs.

use crate::chap::{chap, SECRET, TARGET_SECRET};
use crate::{serve, IQN};
use playhead_target::iscsi::{Credentials, Limits};
use std::process::Command;

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new("timeout")
        .arg("60")
        .arg(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program} is needed here: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {text}{errors}");
    text
}

#[test]
fn libiscsi_finds_and_describes_the_lun() {
    let (server, _disk) = serve(Limits::default());
    let portal = format!("iscsi://{}", server.address());
    let listing = run("iscsi-ls", &["-s", &portal]);
    assert!(listing.contains(&format!("Target:{IQN} Portal:{},1", server.address())), "{listing}");
    assert!(listing.contains("Lun:0    Type:DIRECT_ACCESS"), "{listing}");
    let inquiry = run("iscsi-inq", &[&format!("{portal}/{IQN}/0")]);
    assert!(inquiry.contains("Vendor:PLAYHEAD"), "{inquiry}");
}

#[test]
fn qemu_reads_back_what_it_wrote_zeroed_and_discarded() {
    let (server, _disk) = serve(Limits::default());
    for digest in ["none", "crc32c"] {
        let image = format!(
            r#"json:{{"driver":"raw","discard":"unmap","file":{{"driver":"iscsi","transport":"tcp",
            "portal":"{}","target":"{IQN}","lun":0,"header-digest":"{digest}"}}}}"#,
            server.address()
        );
        let script = [
            "write -P 0x5a 0 1M",
            "write -P 0xa5 1M 24M",
            "write -P 0x77 513k 1536",
            "read -P 0x5a 0 513k",
            "read -P 0x77 513k 1536",
            "read -P 0xa5 1M 24M",
            "write -z 2M 4M",
            "read -P 0 2M 4M",
            "write -z -u 8M 1M",
            "read -P 0 8M 1M",
            "discard 16M 2M",
            "read -P 0 16M 2M",
            "write -f -P 0x11 4096 4096",
            "read -P 0x11 4096 4096",
            "flush",
        ];
        let mut arguments = Vec::new();
        for line in &script {
            arguments.extend(["-c", line]);
        }
        arguments.push(&image);
        let text = run("qemu-io", &arguments);
        assert!(!text.contains("failed"), "{text}");
    }
}

fn succeeds(program: &str, arguments: &[&str]) -> bool {
    let status = Command::new("timeout").arg("60").arg(program).args(arguments).output().unwrap().status;
    status.success()
}

#[test]
fn libiscsi_and_qemu_prove_themselves_and_libiscsi_has_the_target_do_so() {
    let (server, _disk) = serve(Limits::default());
    let (mine, qemu) = ("iqn.2026-01.org.example:libiscsi", "iqn.2026-01.org.example:qemu");
    let known = [mine, qemu].map(|name| (name.to_owned(), chap("host")));
    server.set_credentials(Credentials::new(true, Some(chap("browse")), known).unwrap());
    let address = server.address();
    let listing = run("iscsi-ls", &["-i", mine, &format!("iscsi://browse%{SECRET}@{address}")]);
    assert!(listing.contains(&format!("Target:{IQN}")), "{listing}");
    let lun = format!("{address}/{IQN}/0");
    let mutual =
        |secret: &str| format!("iscsi://host%{SECRET}@{lun}?target_user=array&target_password={secret}");
    for url in [format!("iscsi://host%{SECRET}@{lun}"), mutual(TARGET_SECRET)] {
        let inquiry = run("iscsi-inq", &["-i", mine, &url]);
        assert!(inquiry.contains("Vendor:PLAYHEAD"), "{inquiry}");
        let capacity = run("iscsi-readcapacity16", &["-i", mine, &url]);
        assert!(capacity.contains("Total size:67108864"), "{capacity}");
    }
    for url in [
        format!("iscsi://{lun}"),
        format!("iscsi://host%wrong@{lun}"),
        format!("iscsi://guest%{SECRET}@{lun}"),
        mutual("this-is-not-the-array's"),
    ] {
        assert!(!succeeds("iscsi-inq", &["-i", mine, &url]), "{url}");
    }
    let image = |user: &str| {
        format!(
            r#"json:{{"driver":"raw","file":{{"driver":"iscsi","transport":"tcp","portal":"{address}","target":"{IQN}",
            "lun":0,"initiator-name":"{qemu}","user":"{user}","password-secret":"chap"}}}}"#
        )
    };
    let password = format!("secret,id=chap,data={SECRET}");
    let info = run("qemu-img", &["info", "--object", &password, &image("host")]);
    assert!(info.contains("virtual size: 64 MiB"), "{info}");
    assert!(!succeeds("qemu-img", &["info", "--object", &password, &image("guest")]));
}
