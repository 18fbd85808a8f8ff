use super::*;

#[test]
fn text_is_that_of_the_new_name() {
    let (from, to): (MachineName, MachineName) = ("web".parse().unwrap(), "db".parse().unwrap());
    let names = Names {
        from: &from,
        to: &to,
        edits: &[],
    };
    let places = Places::default();
    let mut plan = Plan::default();
    let mut translate = |text: &str, file: &str, extent| {
        let bytes = plan.translate(text.as_bytes().to_vec(), Path::new(file), names, extent, &places);
        String::from_utf8(bytes.unwrap()).unwrap()
    };
    let nspawn = "# Settings of machine 'web', see systemd.nspawn(5).\n[Exec]\nHostname=web\nMachineID=0123\n\
                  # web\n[Network]\nPort=80\n";
    assert_eq!(
        translate(nspawn, "web.nspawn", Extent::Like),
        "# Settings of machine 'db', see systemd.nspawn(5).\n[Exec]\nHostname=db\n# web\n[Network]\nPort=80\n"
    );
    let kept = translate(nspawn, "web.nspawn", Extent::Same);
    assert!(
        kept.contains("MachineID=0123\n") && kept.contains("Hostname=db\n"),
        "{kept}"
    );
    let head = Topic::Secret.head(&from);
    let drop_in = format!(
        "{head}[Service]\nLoadCredentialEncrypted=a:/var/lib/machinist/secrets/web/a\nEnvironment={MAC}02:00:00:00:00:01\n"
    );
    assert_eq!(
        translate(&drop_in, "50-x.conf", Extent::Like),
        format!(
            "{}[Service]\nLoadCredentialEncrypted=a:/var/lib/machinist/secrets/db/a\n",
            Topic::Secret.head(&to)
        )
    );
    assert!(translate(&drop_in, "50-x.conf", Extent::LikeWithIdentity).contains(MAC));
    assert_eq!(plan.warnings.len(), 1, "{:?}", plan.warnings);
    assert!(plan.warnings[0].starts_with("'web' and 'db' both forward the same port of the host: Port=80; "));
}
