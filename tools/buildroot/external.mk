include $(BR2_EXTERNAL_WSPUSH_PATH)/wspush.mk
