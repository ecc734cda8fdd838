################################################################################
#
# wspush
#
################################################################################

# This directory is a BR2_EXTERNAL tree:
#
#   make BR2_EXTERNAL=DIR/tools/buildroot menuconfig
#
# It builds the wspush that it is part of.

WSPUSH_VERSION = 0.1
WSPUSH_SITE = $(BR2_EXTERNAL_WSPUSH_PATH)/../..
WSPUSH_SITE_METHOD = local
WSPUSH_LICENSE = MIT
WSPUSH_LICENSE_FILES = README.md
WSPUSH_DEPENDENCIES = bearssl

# OUT keeps away from what the source directory may hold for the host.
WSPUSH_MAKE_ARGS = \
	OUT=target/wspush PREFIX=/usr \
	CFLAGS="$(TARGET_CFLAGS) -ffunction-sections -fdata-sections" \
	LDFLAGS="$(TARGET_LDFLAGS) -Wl,--gc-sections" \
	BEARSSL=$(STAGING_DIR)/usr

define WSPUSH_BUILD_CMDS
	$(TARGET_MAKE_ENV) $(TARGET_CONFIGURE_OPTS) $(MAKE) -C $(@D) \
		$(TARGET_CONFIGURE_OPTS) $(WSPUSH_MAKE_ARGS)
endef

define WSPUSH_INSTALL_TARGET_CMDS
	$(TARGET_MAKE_ENV) $(MAKE) -C $(@D) $(TARGET_CONFIGURE_OPTS) \
		$(WSPUSH_MAKE_ARGS) DESTDIR=$(TARGET_DIR) install
endef

define WSPUSH_INSTALL_INIT_SYSV
	$(INSTALL) -D -m 0755 $(WSPUSH_PKGDIR)/S50wspush \
		$(TARGET_DIR)/etc/init.d/S50wspush
endef

define WSPUSH_INSTALL_INIT_SYSTEMD
	$(INSTALL) -D -m 0644 $(@D)/tools/systemd/wspush.service \
		$(TARGET_DIR)/usr/lib/systemd/system/wspush.service
endef

define WSPUSH_USERS
	wspush -1 wspush -1 * - - - WebSocket push server
endef

$(eval $(generic-package))
